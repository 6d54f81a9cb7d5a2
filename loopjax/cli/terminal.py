"""Text from files on a terminal: names and messages cannot move the cursor or reorder a line."""

import io
import logging
import sys
import unicodedata

JOINERS = "\u200c\u200d"  # invisible, but emoji and several scripts are written with them


def printable(text: str) -> str:
    r"""Text with control characters, direction marks and the like written out, as `\x1b`.

    That is every character of Unicode's categories of controls (C0 with line breaks and tabs, DEL,
    C1), formats (among them all direction marks), surrogates, and separators of lines and
    paragraphs.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) for char in text)


def say(text: str) -> None:
    """Prints one message on stderr."""
    print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def prepare_streams() -> None:
    """Shows the package's warnings as messages, and makes no stream stumble over a character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("loopjax")
    if not any(isinstance(handler, _Messages) for handler in logger.handlers):
        logger.addHandler(_Messages(logging.WARNING))


class _Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def _escaped(char: str) -> str:
    if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or char in JOINERS:
        return char
    return char.encode("unicode_escape").decode("ascii")
