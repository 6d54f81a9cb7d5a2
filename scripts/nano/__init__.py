"""How the bundled encoder was pretrained and evaluated."""
