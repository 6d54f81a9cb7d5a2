"""A socket, a token, and a server that runs until it is stopped."""

import ipaddress
import secrets
import socket
from pathlib import Path

from loopjax.errors import UserError
from loopjax.serve.app import make_app
from loopjax.serve.guard import Guard
from loopjax.serve.live import Live
from loopjax.serve.marks import MarksFile

LOCAL = ("127.0.0.1", "localhost", "::1")


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
    import uvicorn

    port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
    app = make_app(live, MarksFile(marks), max_upload_bytes)
    names = [*LOCAL, host] if _is_local(host) else [*LOCAL, host, socket.gethostname(), "*"]
    guarded = Guard(app, token, [name.lower() for name in names], port)
    config = uvicorn.Config(guarded, log_level="warning", server_header=False, ws="none")
    shown = host if host not in ("0.0.0.0", "::") else socket.gethostname()
    shown = f"[{shown}]" if ":" in shown else shown
    print(f"http://{shown}:{port}/?token={token}", flush=True)  # noqa: T201
    uvicorn.Server(config).run(sockets=[listener])


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
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port"
        ) from None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
