"""The client of the Hub: an optional package, kept quiet, and asked over encrypted lines only."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

from loopjax.errors import UserError

TIMEOUT_S = 10


def endpoint() -> str:
    """Where the Hub is."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def require_encrypted(allow_http: bool) -> None:
    """Refuses an endpoint that anyone on the way could answer for.

    Raises:
        UserError: HF_ENDPOINT is one, and nobody has allowed it.
    """
    if not endpoint().startswith("https:") and not allow_http:
        raise UserError(
            f"HF_ENDPOINT={endpoint()} is not encrypted: whoever sits between could exchange the "
            "files. Use https, or allow it with --allow-http"
        )


def client(otherwise: str = "") -> ModuleType:
    """The package huggingface_hub.

    Raises:
        UserError: it is not installed; ends in what can be done `otherwise`.
    """
    try:
        import huggingface_hub
    except ImportError:
        tail = f"; or without it, {otherwise}" if otherwise else ""
        raise UserError(
            f"the Hub needs huggingface_hub: pip install 'loopjax[hub]'{tail}"
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """Turns whatever the client meets into one error, without the log of its attempts.

    Raises:
        UserError: no network, no such repository, no permission, ...; in the client's words.
    """
    from huggingface_hub import errors, utils

    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    level = utils.logging.get_verbosity()
    utils.logging.set_verbosity(logging.CRITICAL)
    network = getattr(errors, "HTTPError", OSError)  # httpx's; requests' is an OSError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a model has a table of its rows
            yield
    except (OSError, ValueError, network) as error:
        lines = [line for line in str(error).splitlines() if line] or [type(error).__name__]
        kept = 2 if lines[0][:3].isdigit() else 1  # what a status means stands in the next line
        raise UserError(" ".join(lines[:kept])) from error
    finally:
        utils.logging.set_verbosity(level)
