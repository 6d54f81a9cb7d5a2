"""Seeds as typed on the command line."""

from loopjax.errors import UserError


def parse_seeds(text: str | None) -> list[int]:
    """Reads `0..9` or `0,3,7`; nothing given means seed 0.

    Raises:
        UserError: neither form.
    """
    if text is None:
        return [0]
    first, dots, last = text.partition("..")
    try:
        return list(range(int(first), int(last) + 1)) if dots else [int(s) for s in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: write 0..9 or 0,3,7") from None
