"""Where the bundled files lie: in an installed wheel, or in a source checkout."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
_CHECKOUT = Path(__file__).parent.parent


def folder(name: str) -> Path:
    """The folder of bundled `configs` or `weights`."""
    installed = DATA / name
    return installed if installed.is_dir() else _CHECKOUT / name
