"""Who may ask: one browser that knows the token, by a name of this server, from its own page."""

import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}


class Guard:
    """Refuses requests before anything else sees them.

    The names of this server stop pages of others whose name was made to lead here (DNS rebinding),
    the origin stops pages of others that send something, and the token stops other users of the
    machine. The first address opened carries the token; a cookie holds it afterwards.
    """

    def __init__(self, app: ASGIApp, token: str, names: Sequence[str], port: int):
        """Guards an application.

        Args:
            app: what is guarded.
            token: what the browser must know.
            names: host names of this server; "*" for every IP address as well.
            port: it listens on.
        """
        self._app = app
        self._token = token
        self._names = tuple(names)
        self._port = port
        self._cookie = f"loopjax-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or hands on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return PlainTextResponse("this server does not go by that name", 403)
        origin = headers.get("origin")
        changes = scope["method"] not in ("GET", "HEAD")
        if (origin is not None and origin != f"http://{host}") or (changes and origin is None):
            return PlainTextResponse("that page is not this server's", 403)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if given and scope["path"] == "/" and not changes and self._is_token(given):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return answer
        if not self._is_token(cookie_parser(headers.get("cookie", "")).get(self._cookie, "")):
            return PlainTextResponse("open the address that `loopjax serve` printed", 401)
        return None

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())

    def _is_ours(self, host: str) -> bool:
        name, colon, port = host.rpartition(":")
        if not colon or port != str(self._port):
            name = host if self._port == 80 else ""
        name = name.strip("[]").lower()
        if name in self._names:
            return True
        if "*" not in self._names:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
