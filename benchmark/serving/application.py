"""The web application of `bench serve`: refuses what is not of the contract, answers the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from benchmark.machine import settle
from benchmark.serving.contract import (
    Description,
    RefusedError,
    read_question,
    written_answer,
)
from benchmark.serving.desk import Desk

_AT_A_TIME = 32  # requests that are read or wait for an answer; their bodies are in memory
_BUSY = 503
_DIGITS = 15  # of a length that is no attempt to make Python read a long number

T = TypeVar("T")


class Service:
    """The handlers of an endpoint.

    Everything that computes runs on one thread, so clients are answered one after the other, and
    the event loop stays free to refuse.

    Args:
        desk: What answers.
        about: What the endpoint says of itself.
    """

    def __init__(self, desk: Desk, about: Description) -> None:
        self._desk, self._about = desk, about
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, initializer=settle)

    def application(self) -> Starlette:
        """Make the application."""
        routes = [
            Route("/", self._describe),
            Route("/count", self._count),
            Route("/answer", self._answer, methods=["POST"]),
        ]
        handlers: Any = {
            HTTPException: _unknown,
            RefusedError: _refused,
            ClientDisconnect: _gone,
            Exception: _bug,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    def count(self) -> dict[str, Any]:
        """Count the images answered."""
        return self._thread.submit(self._desk.count).result()

    def close(self) -> None:
        """End the thread, when nothing is asked any more."""
        self._thread.shutdown()

    async def _describe(self, _request: Request) -> Response:
        return _json(self._about.model_dump())

    async def _count(self, _request: Request) -> Response:
        return _json(await self._computed(self._desk.count))

    async def _answer(self, request: Request) -> Response:
        if self._waiting >= _AT_A_TIME:
            raise RefusedError(_BUSY, f"{_AT_A_TIME} requests wait already: come back later")
        self._waiting += 1
        try:
            body = await _body(request, self._about.most_bytes)
            host = request.client.host if request.client else ""
            return Response(
                await self._computed(lambda: self._answered(body, host)),
                media_type="application/json",
            )
        finally:
            self._waiting -= 1

    def _answered(self, body: bytes, host: str) -> bytes:
        question = read_question(body, self._about)
        logits, answered = self._desk.answer(question.images, question.client or f"@{host}")
        return _dumped(written_answer(logits, self._about.scores, answered))

    async def _computed(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


async def _body(request: Request, most: int) -> bytes:
    """Read a body, but no more than is allowed, whatever its header says."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, "content-type is not application/json")
    said = request.headers.get("content-length", "0")
    if len(said) > _DIGITS or int(said) > most:  # what is no number, the server refuses itself
        raise RefusedError(413, f"the body has more than {most} bytes")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise RefusedError(413, f"the body has more than {most} bytes")
    return bytes(body)


async def _refused(_request: Request, error: RefusedError) -> Response:
    # The connection stays: what is left of the body is thrown away as it comes. Closed at once, a
    # client that is still sending would find it reset, and never read why.
    headers = {"Retry-After": "1"} if error.status == _BUSY else None
    return _json({"error": str(error)}, error.status, headers)


async def _unknown(_request: Request, error: HTTPException) -> Response:
    message = f"{error.detail}: there are GET /, GET /count and POST /answer"
    return _json({"error": message}, error.status_code, dict(error.headers or {}))


async def _gone(_request: Request, _error: ClientDisconnect) -> Response:
    return _json({"error": "the body did not come to its end"}, 400)  # nobody reads it


async def _bug(_request: Request, _error: Exception) -> Response:
    return _json({"error": "the server failed"}, 500)


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_dumped(content), status, headers, "application/json")


def _dumped(content: object) -> bytes:
    return json.dumps(content, allow_nan=False).encode()
