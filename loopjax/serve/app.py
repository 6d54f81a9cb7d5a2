"""The routes of the live page. A client names loops by their numbers, never by a path."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from loopjax.audio.loop import DecodeError
from loopjax.errors import LoopjaxError
from loopjax.library.marks import KEEP, REJECT
from loopjax.serve.live import Live
from loopjax.serve.marks import Decision, MarksFile

MAX_JSON_BYTES = 8 << 20
MAX_NOTE, MAX_TEXT, MAX_NAME = 500, 200, 300

Handler = Callable[[Request], Awaitable[Response]]


class BadRequestError(Exception):
    """What the page sent makes no sense, or is too much of it."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def make_app(live: Live, marks: MarksFile, max_upload_bytes: int) -> Starlette:
    """The application; see `loopjax.serve.guard` for who may use it.

    Args:
        live: answers.
        marks: what the page decides is written there.
        max_upload_bytes: of a file that the page sends.
    """
    page = live.page()

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page)

    async def sound(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(live.sound, request.path_params["i"]))

    async def audio(request: Request) -> Response:
        clip = await run_in_threadpool(live.clip, request.path_params["i"])
        return Response(clip.data, media_type=clip.mime_type)

    async def near(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(live.near, request.path_params["i"]))

    async def why(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(live.why, request.path_params["i"]))

    async def ask(request: Request) -> Response:
        name = request.query_params.get("name", "")[:MAX_NAME] or "loop"
        content = await _body(request, max_upload_bytes)
        return JSONResponse(await run_in_threadpool(live.ask, content, name))

    async def like_text(request: Request) -> Response:
        text = (await _json(request)).get("text")
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
            raise BadRequestError(400, f"expected a text of 1 to {MAX_TEXT} characters")
        return JSONResponse(await run_in_threadpool(live.like_text, text.strip()))

    async def show_marks(request: Request) -> Response:
        return JSONResponse(marks.by_key())

    async def decide(request: Request) -> Response:
        decisions = (await _json(request)).get("decisions")
        if not isinstance(decisions, list):
            raise BadRequestError(400, "expected a list of decisions")
        await run_in_threadpool(marks.decide, [_decision(live, item) for item in decisions])
        return JSONResponse({"file": str(marks.path)})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        live.close()

    routes = [
        Route("/", show_page),
        Route("/sound/{i:int}", _told(sound)),
        Route("/audio/{i:int}", _told(audio)),
        Route("/near/{i:int}", _told(near)),
        Route("/why/{i:int}", _told(why)),
        Route("/ask", _told(ask), methods=["POST"]),
        Route("/text", _told(like_text), methods=["POST"]),
        Route("/marks", _told(show_marks)),
        Route("/marks", _told(decide), methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _told(handler: Handler) -> Handler:
    """The same; what goes wrong becomes one line for the page."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except IndexError:
            return _error(404, "no such loop")
        except DecodeError as error:
            return _error(422, f"{error.reason}: {error}")
        except BadRequestError as error:
            return _error(error.status, str(error))
        except LoopjaxError as error:
            return _error(409, str(error))

    return handle


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


async def _body(request: Request, limit: int) -> bytes:
    """What was sent, refused as soon as it is too much."""
    told = request.headers.get("content-length", "0")
    content = bytearray()
    if not told.isdigit() or int(told) > limit:
        raise BadRequestError(413, f"larger than {limit >> 20} MiB")
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise BadRequestError(413, f"larger than {limit >> 20} MiB")
    return bytes(content)


async def _json(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await _body(request, MAX_JSON_BYTES))
    except (ValueError, RecursionError):
        raise BadRequestError(400, "expected JSON") from None
    if not isinstance(value, dict):
        raise BadRequestError(400, "expected a JSON object")
    return value


def _decision(live: Live, item: object) -> Decision:
    found = item if isinstance(item, dict) else {}
    i, mark, note = found.get("i"), found.get("mark"), found.get("note")
    if type(i) is not int or mark not in (KEEP, REJECT, "") or not isinstance(note, str):
        raise BadRequestError(400, "expected decisions {i, mark, note}")
    return Decision(*live.id_and_path(i), mark, note[:MAX_NOTE])
