"""Routes that are asked thousands of times a second, or are sent megabytes: one message in, one message out.

They are declared as any other route and stand in the OpenAPI document so. But pydantic reads the body's bytes and
writes those of the answer itself, without FastAPI's way by Python objects, which costs more than all the rest of such a
request, and several times the memory of a large one.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, ClassVar, Protocol, get_args, get_origin, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from airpanda.dispatcher.members import FEW, MANY, Most, surplus
from airpanda.dispatcher.whole import WholeReader

MOST_ERRORS = 100
"""Of one body, told each for itself."""

Caller = Callable[[Request], Awaitable[Any]]


class Reader(Protocol):
    """Makes a message of JSON, as ``TypeAdapter`` does."""

    def validate_json(self, content: bytes, /) -> Any: ...


class LeanRoute(APIRoute):
    """For endpoints whose first parameter is the body, and whose others are dependencies on the request alone.

    Who calls is asked before anything is made of the body, and how much there is in it before it is parsed.

    Raises:
        TypeError: the endpoint is of another kind.
    """

    most: ClassVar[Most] = FEW

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = _application(endpoint, [_function(each) for each in self.dependencies], self.most, self.reader)

    @staticmethod
    def reader(message: Any) -> Reader:
        """What makes a message of a body."""
        return TypeAdapter(message)


class LargeLeanRoute(LeanRoute):
    """For bodies of very many parts. What is missing is told when the rest is right."""

    most = MANY

    @staticmethod
    def reader(message: Any) -> Reader:
        return WholeReader(message)


def _application(
    endpoint: Callable[..., Awaitable[Any]], demanded: list[Caller], most: Most, reader: Callable[[Any], Reader]
) -> ASGIApp:
    hints = get_type_hints(endpoint, include_extras=True)
    body, *others = inspect.signature(endpoint).parameters
    message, answer = reader(hints[body]), TypeAdapter[Any](hints["return"])
    given = {name: _dependency(hints[name]) for name in others}
    only_demanded = [each for each in demanded if each not in given.values()]

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        content = await _body(receive)
        for each in only_demanded:
            await each(request)
        values = {name: await each(request) for name, each in given.items()}
        asked = _parsed(message, content, request, most)
        del content  # megabytes, of a submission
        await _send(send, answer.dump_json(await endpoint(asked, **values)))

    return application


def _dependency(hint: Any) -> Caller:
    if get_origin(hint) is Annotated:
        for each in get_args(hint)[1:]:
            if isinstance(each, Depends):
                return _function(each)
    raise TypeError(f"{hint} is no dependency")


def _function(depends: Depends) -> Caller:
    function = depends.dependency
    if function is None or list(inspect.signature(function).parameters) != ["request"]:
        raise TypeError(f"{function} does not depend on the request alone")
    return function


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the body broke off: send it again")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _parsed(message: Reader, content: bytes, request: Request, most: Most) -> Any:
    """The message of the body.

    Raises:
        HTTPException: there is more in it than may be.
        RequestValidationError: it is none.
    """
    if not content:
        raise RequestValidationError([{"type": "missing", "loc": ("body",)}])
    if not _is_json(request.headers.get("content-type", "")):
        raise RequestValidationError([{"type": "model_attributes_type", "loc": ("body",)}])
    if too_much := surplus(content, most):
        raise HTTPException(413, f"the body has {too_much}, more than this route takes at once")
    try:
        return message.validate_json(content)
    except ValidationError as error:
        if error.error_count() > MOST_ERRORS:  # each costs a kilobyte and more to tell
            raise RequestValidationError([{"type": "too_many_errors", "loc": ("body",)}]) from None
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from None


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _send(send: Send, content: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
