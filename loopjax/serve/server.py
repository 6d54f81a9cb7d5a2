"""A socket, a token, and a server that runs until it is stopped."""

import ipaddress
import logging
import os
import secrets
import socket
from pathlib import Path
from types import FrameType

import uvicorn

from loopjax.errors import UserError
from loopjax.serve.app import make_app
from loopjax.serve.guard import Guard
from loopjax.serve.live import Live
from loopjax.serve.marks import MarksFile

LOCAL = ("127.0.0.1", "localhost", "::1")
PATIENCE_S = 2  # with requests that are open at the end


def serve(
    live: Live, marks: Path, listener: socket.socket, host: str, max_upload_bytes: int
) -> None:
    """Serves the live page of a store until SIGINT or SIGTERM; prints the address to open.

    Args:
        live: answers.
        marks: file that decisions are written to.
        listener: from `listen`.
        host: address that it listens on.
        max_upload_bytes: of a file that the page sends.

    Raises:
        UserError: the file of marks is unreadable.
    """
    port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
    app = make_app(live, MarksFile(marks, live.ids(), live.paths()), max_upload_bytes)
    names = [*LOCAL, host] if _is_local(host) else [*LOCAL, host, socket.gethostname(), "*"]
    guarded = Guard(app, token, [name.lower() for name in names], port)
    config = uvicorn.Config(
        guarded,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=PATIENCE_S,
    )
    shown = host if host not in ("0.0.0.0", "::") else socket.gethostname()
    shown = f"[{shown}]" if ":" in shown else shown
    print(f"http://{shown}:{port}/?token={token}", flush=True)  # noqa: T201
    try:
        _Server(config, live).run(sockets=[listener])
    finally:
        live.close()


class _Server(uvicorn.Server):
    """Ends in time, however slow what it waits for: a decoder, or a browser that sends."""

    def __init__(self, config: uvicorn.Config, live: Live):
        super().__init__(config)
        self._live = live

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._live.interrupt()
        # What breaks off from here on is wanted, and nobody needs to read of it.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything takes time.

    Args:
        host: address.
        port: 0: any that is free.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else error
        raise UserError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port"
        ) from None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
