"""The OpenAPI document: what FastAPI finds in the routes, with who may call and every way to be refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from airpanda.dispatcher import problems
from airpanda.dispatcher.verbs import verb_of

VERSION = "1"
_METHODS = frozenset({"get", "put", "post", "delete", "patch"})
_SCHEMES: dict[str, Any] = {
    "pilotToken": {"type": "http", "scheme": "bearer", "description": "a token of one pilot; with its proxy by TLS"},
    "clientToken": {"type": "http", "scheme": "bearer", "description": "airpanda token client; owners, queues, verbs"},
    "certificate": {"type": "mutualTLS", "description": "an owner's certificate, or a proxy made from it directly"},
}
VERB = "x-airpanda-verb"
"""Of an operation: what a client token that names verbs must name (``airpanda.dispatcher.verbs``)."""
_OPEN = frozenset({"/v1/health", "/v1/ready"})


def install(app: FastAPI) -> None:
    """Have ``app.openapi()`` answer our document; made once, when first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=VERSION, routes=app.routes)
    verbs = {
        (route.path, method.lower()): verb_of(route.endpoint, method)
        for route in _flat(app.routes)
        for method in route.methods
    }
    schemas = made["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = problem_schema()
    made["components"]["securitySchemes"] = _SCHEMES
    for path, item in made["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                operation["security"] = _security(path)
                operation["responses"].update(_refusals(path, method))
                if {"clientToken": []} in operation["security"]:
                    operation[VERB] = verbs[path, method]
    return made


def _flat(routes: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    """Our routes, those of included routers too, which FastAPI keeps apart in some versions."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _flat(inner.routes)
        elif isinstance(route, APIRoute):
            yield route


def problem_schema() -> dict[str, Any]:
    """RFC 9457, with every code there is."""
    text = {"type": "string"}
    return {
        "type": "object",
        "title": "Problem",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": text,
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "code": {"type": "string", "enum": problems.codes()},
        },
    }


def _security(path: str) -> list[dict[str, list[str]]]:
    if path in _OPEN:
        return []
    if path.startswith("/v1/owner/"):
        return [{"certificate": []}]
    return [{"pilotToken": []}] if path.startswith("/v1/pilot/") else [{"clientToken": []}]


def _refusals(path: str, method: str) -> dict[str, Any]:
    statuses = {500, 503} if path in _OPEN else {400, 401, 403, 404, 408, 409, 410, 422, 429, 500, 503}
    if method != "get":
        statuses.add(413)
    schema = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": problems.TITLES[status], "content": schema} for status in sorted(statuses)}
