"""The routes of the live page. A client names loops by their numbers, never by a path."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from loopjax.audio.loop import DecodeError
from loopjax.errors import LoopjaxError
from loopjax.library.marks import KEEP, REJECT
from loopjax.report.data import Plain
from loopjax.serve.live import Live
from loopjax.serve.marks import Change, MarksFile

MAX_JSON_BYTES = 8 << 20
MAX_TEXT, MAX_NAME = 200, 300
MAX_DIGITS = 9  # of the number of a loop
MAX_UPLOADS = 2  # held at a time; others wait before they are read

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
    uploads = asyncio.Semaphore(MAX_UPLOADS)

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page)

    def of_loop(answer: Callable[[int], Plain]) -> Handler:
        async def tell(request: Request) -> Response:
            return JSONResponse(await run_in_threadpool(answer, _number_of(request)))

        return tell

    async def audio(request: Request) -> Response:
        clip = await run_in_threadpool(live.clip, _number_of(request))
        return Response(clip.data, media_type=clip.mime_type)

    async def ask(request: Request) -> Response:
        name = request.query_params.get("name", "")[:MAX_NAME] or "loop"
        async with uploads:
            content = await _body(request, max_upload_bytes)
            return JSONResponse(await run_in_threadpool(live.ask, content, name))

    async def like_text(request: Request) -> Response:
        text = (await _json(request)).get("text")
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
            raise BadRequestError(400, f"expected a text of 1 to {MAX_TEXT} characters")
        return JSONResponse(await run_in_threadpool(live.like_text, text.strip()))

    async def show_marks(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(marks.by_row))

    async def decide(request: Request) -> Response:
        decisions = (await _json(request)).get("decisions")
        if not isinstance(decisions, list):
            raise BadRequestError(400, "expected a list of decisions")
        await run_in_threadpool(marks.decide, [_change(live, item) for item in decisions])
        return JSONResponse({"file": str(marks.path)})

    routes = [
        Route("/", show_page),
        Route("/sound/{i}", _told(of_loop(live.sound))),
        Route("/audio/{i}", _told(audio)),
        Route("/near/{i}", _told(of_loop(live.near))),
        Route("/why/{i}", _told(of_loop(live.why))),
        Route("/ask", _told(ask), methods=["POST"]),
        Route("/text", _told(like_text), methods=["POST"]),
        Route("/marks", _told(show_marks)),
        Route("/marks", _told(decide), methods=["POST"]),
    ]
    return Starlette(routes=routes)


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
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody waits for any more

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
        json.dumps(value, ensure_ascii=False).encode()  # no halves of characters
    except (ValueError, RecursionError):
        raise BadRequestError(400, "expected JSON") from None
    if not isinstance(value, dict):
        raise BadRequestError(400, "expected a JSON object")
    return value


def _number_of(request: Request) -> int:
    text = request.path_params["i"]
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise IndexError(text)
    return int(text)


def _change(live: Live, item: object) -> Change:
    found = item if isinstance(item, dict) else {}
    i, mark, note = found.get("i"), found.get("mark"), found.get("note")
    is_note = note is None or isinstance(note, str)
    if type(i) is not int or mark not in (KEEP, REJECT, "", None) or not is_note:
        raise BadRequestError(400, "expected decisions {i, mark, note}")
    live.require(i)
    return Change(i, mark, note)
