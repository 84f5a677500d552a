"""What is answered over HTTP: the routes, their typed requests and answers, and what bad input gets.

Importing this file imports FastAPI, so only `serve` does. Every refusal is `{"error": "one line"}`. Swagger's page is
left out, as it loads scripts from elsewhere; /openapi.json is there. No CORS header is ever sent.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import DataError, UsageError, did_you_mean
from ..retrieval import Hit, Searcher
from ..version import __version__

LONGEST_BODY = 64 * 1024
LONGEST_QUERY = 2000
LARGEST_K = 1000


class Question(BaseModel):
    """What to search for."""

    model_config = ConfigDict(extra="forbid")

    q: str = Field(max_length=LONGEST_QUERY, description="the question, in any language")
    k: int = Field(10, ge=1, le=LARGEST_K, description="how many passages; at most as many as are searched")
    language: str | None = Field(None, max_length=35, description="only passages in this language, such as en")


class Answer(BaseModel):
    """The passages found, best first."""

    results: list[Hit]


class Health(BaseModel):
    """Said as long as requests are taken."""

    status: Literal["ok"] = "ok"
    passages: int


class Refusal(BaseModel):
    """Why a request was refused, in one line."""

    error: str


class BodyLimit:
    """Refuse a body over the limit, whether its length is declared or it comes in chunks, before a route sees it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body whole, then pass it on."""
        body, more = b"", scope["type"] == "http"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > LONGEST_BODY:
                await _refuse(413, f"the body is longer than {LONGEST_BODY} bytes")(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)


def make_app(searcher: Searcher) -> FastAPI:
    """The application over an open searcher."""
    app = FastAPI(
        title="mcontriever",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        responses={code: {"model": Refusal} for code in (413, 422)},
        exception_handlers=dict.fromkeys(
            (HTTPException, RequestValidationError, UsageError, DataError, Exception), _explain
        ),
    )
    app.add_middleware(BodyLimit)
    # One thread for all: the encoder is not made for two at once, and torch keeps a team of threads per caller.
    worker = ThreadPoolExecutor(1, "search")

    async def answer(question: Question, request: Request) -> Answer:
        given = [name for name, _ in request.query_params.multi_items()]
        if len(given) > len(set(given)) or (given and request.method == "POST"):
            raise UsageError("give every field once: in the address of a GET, in the body of a POST")
        loop = asyncio.get_running_loop()
        hits = await loop.run_in_executor(worker, searcher.search, question.q, question.k, question.language)
        return Answer(results=hits)

    @app.get("/search")
    async def search(question: Annotated[Question, Query()], request: Request) -> Answer:
        """The best passages for a question; its fields in the address."""
        return await answer(question, request)

    @app.post("/search")
    async def search_by_body(question: Question, request: Request) -> Answer:
        """The best passages for a question; its fields as JSON."""
        return await answer(question, request)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Answers at once, also while a search runs."""
        return Health(passages=len(searcher))

    return app


async def _explain(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return _refuse(error.status_code, error.detail, error.headers)
    if isinstance(error, RequestValidationError):
        return _refuse(422, "; ".join(map(_in_words, error.errors()[:3])))
    if isinstance(error, UsageError | DataError):
        return _refuse(422, str(error))
    return _refuse(500, "internal error; the server's log has it")  # Starlette raises it again, uvicorn writes it


def _refuse(status: int, why: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(why.split())}, status, headers)


def _in_words(error: dict[str, Any]) -> str:
    """One complaint of pydantic's in the words of ours: which field, what is expected, what was given."""
    name = str(error["loc"][-1])
    if error["type"] == "extra_forbidden":
        return f"unknown field {name[:50]!r}; {did_you_mean(name, Question.model_fields)}"
    if name not in Question.model_fields:
        return "the body must be a JSON object, sent as application/json"
    if error["type"] == "missing":
        return f"{name} is missing; it is {Question.model_fields[name].description}"
    expected = error["msg"].replace("Input should be", "must be").replace("String should", "must")
    return f"{name} {expected}, got {str(error['input'])[:50]!r}"
