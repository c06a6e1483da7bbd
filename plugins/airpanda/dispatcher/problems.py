"""Errors become HTTP here and nowhere else: RFC 9457 documents with the stable code of ``core.errors``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from airpanda.core import errors
from airpanda.messages import Problem

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)
TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Request too slow",
    409: "Conflict",
    410: "Gone",
    413: "Too large",
    422: "Invalid request",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available now",
}
_STATUS: dict[type[errors.AirpandaError], int] = {
    errors.NotFoundError: 404,
    errors.GoneError: 410,
    errors.ConflictError: 409,
    errors.ConfigurationError: 500,
    errors.RequestError: 400,
    errors.CredentialError: 409,
    errors.IdentitySwitchError: 409,
    errors.ServiceError: 503,
}
_HTTP_CODES = {
    401: errors.NotAuthorisedError.code,
    404: errors.NotFoundError.code,
    408: "too-slow",
    413: "too-large",
    429: "rate-limited",
}


def codes() -> list[str]:
    """Every ``code`` that a problem of this service can have."""
    ours = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AirpandaError))
    return sorted({*_HTTP_CODES.values(), *(kind.code for kind in ours)})


def status_of(error: errors.AirpandaError) -> int:
    """The HTTP status for one of our errors; the most specific class decides."""
    if isinstance(error, errors.NotAuthorisedError):
        return 403 if error.authenticated else 401
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def answer(status: int, detail: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem document."""
    problem = Problem(title=TITLES.get(status, "Error"), status=status, detail=detail, code=code)
    return JSONResponse(problem.model_dump(), status, headers=headers, media_type=MEDIA_TYPE)


def problem_of(error: errors.AirpandaError) -> Problem:
    """What the caller is told of one of our errors; what only operators can mend goes to the log."""
    status = status_of(error)
    detail = str(error)
    if status == 500:
        _log.error("%s: %s", error.code, error)
        detail = "the service is set up wrongly; its operators find the reason in its log"
    return Problem(title=TITLES.get(status, "Error"), status=status, detail=detail, code=error.code)


def answer_error(error: errors.AirpandaError) -> JSONResponse:
    """The answer to one of our errors."""
    problem, headers = problem_of(error), {}
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="airpanda"'
    if isinstance(error, errors.ServiceError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s or 1)))
    return JSONResponse(problem.model_dump(), problem.status, headers=headers, media_type=MEDIA_TYPE)


def answer_http(error: HTTPException) -> JSONResponse:
    """The answer to what the framework, or a limit, refused."""
    code = _HTTP_CODES.get(error.status_code, errors.RequestError.code)
    return answer(error.status_code, str(error.detail), code, dict(error.headers or {}))


def install(app: FastAPI) -> None:
    """Make every refusal of the app a problem document."""
    app.add_exception_handler(errors.AirpandaError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


Handler = Callable[[Request, Exception], Awaitable[JSONResponse]]


async def _ours(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.AirpandaError)
    return answer_error(error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """Names the fields and what is wrong with them, never their values: they may be secrets."""
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(str(part) for part in item['loc'])}: {item['type']}" for item in error.errors()[:10]]
    return answer(422, "invalid fields: " + "; ".join(found), errors.RequestError.code)


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return answer_http(error)
