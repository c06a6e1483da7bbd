"""Lean routes answer as FastAPI's own would, but ask who calls before anything is made of the body."""

from __future__ import annotations

import json
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_serializer

from airpanda.core.errors import NotAuthorisedError, RequestError
from airpanda.dispatcher import problems
from airpanda.dispatcher.lean import MOST_ERRORS, LeanRoute
from airpanda.dispatcher.whole import WholeReader
from airpanda.messages import JobSubmission


class Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: Annotated[int, Field(strict=True, ge=1)]
    names: list[str] = Field(default_factory=list)


class Told(BaseModel):
    n: int
    caller: str
    secret: SecretStr

    @field_serializer("secret", when_used="json")
    def _show(self, value: SecretStr) -> str:
        return value.get_secret_value()


async def caller_of(request: Request) -> str:
    if "authorization" not in request.headers:
        raise NotAuthorisedError("a bearer token is needed", authenticated=False)
    return request.headers["authorization"]


async def told(wanted: Wanted, caller: Annotated[str, Depends(caller_of)]) -> Told:
    if wanted.n == 13:
        raise RequestError("no luck")
    return Told(n=wanted.n, caller=caller, secret=SecretStr("s"))


@pytest.fixture(name="http")
def _http() -> httpx.AsyncClient:
    lean = APIRouter(prefix="/lean", dependencies=[Depends(caller_of)], route_class=LeanRoute)
    plain = APIRouter(prefix="/plain", dependencies=[Depends(caller_of)])
    app = FastAPI()
    for router in (lean, plain):
        router.post("/told")(told)
        app.include_router(router)
    problems.install(app)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


AS_JSON = {"Authorization": "me", "Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"n": 1}', AS_JSON, 200),
        (b'{"n": 1}', AS_JSON | {"Content-Type": "application/problem+json; charset=utf-8"}, 200),
        (b'{"n": 1, "n": 2}', AS_JSON, 200),
        (b'{"n": 13}', AS_JSON, 400),
        (b'{"n": "1"}', AS_JSON, 422),
        (b'{"n": 0}', AS_JSON, 422),
        (b'{"n": 1, "m": 2}', AS_JSON, 422),
        (b'{"n": 1, "names": ["a", 7]}', AS_JSON, 422),
        (b"{}", AS_JSON, 422),
        (b"", AS_JSON, 422),
        (b'{"n": 1}', AS_JSON | {"Content-Type": "text/plain"}, 422),
        (b'{"n": 1}', {"Authorization": "me"}, 422),
        (b'{"n": 1}', {"Content-Type": "application/json"}, 401),
    ],
)
async def test_as_a_plain_route(http: httpx.AsyncClient, content: bytes, headers: dict[str, str], status: int) -> None:
    lean, plain = [await http.post(f"/{kind}/told", content=content, headers=headers) for kind in ("lean", "plain")]
    assert (lean.status_code, lean.json()) == (plain.status_code, plain.json())
    assert lean.status_code == status
    assert lean.headers["content-type"] == plain.headers["content-type"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"null",
        b'{"n": 1}}',
        b"\xff\xfe",
        b'{"n": 1, "names": ["\\ud800"]}',
        b'{"names": ' + b"[" * 100_000,
    ],
)
async def test_what_is_no_json_is_refused(http: httpx.AsyncClient, content: bytes) -> None:
    answer = await http.post("/lean/told", content=content, headers=AS_JSON)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("invalid fields: body")
    stranger = await http.post("/lean/told", content=content, headers={"Content-Type": "application/json"})
    assert stranger.status_code == 401, "nothing is made of a stranger's body"


async def test_more_errors_than_anybody_reads_are_one(http: httpx.AsyncClient) -> None:
    for surplus, says in ((MOST_ERRORS - 1, "body.x0: extra_forbidden"), (MOST_ERRORS + 1, "body: too_many_errors")):
        content = json.dumps({f"x{n}": 0 for n in range(surplus)})  # and n is missing
        answer = await http.post("/lean/told", content=content, headers=AS_JSON)
        assert answer.status_code == 422
        assert says in answer.json()["detail"]


async def test_other_methods_are_refused(http: httpx.AsyncClient) -> None:
    assert (await http.get("/lean/told", headers=AS_JSON)).status_code == 405


def test_an_endpoint_of_another_kind_is_refused_when_declared() -> None:
    async def by_path(wanted: Wanted, name: str) -> Told:
        raise NotImplementedError

    with pytest.raises(TypeError):
        APIRouter(route_class=LeanRoute).post("/{name}")(by_path)


SUBMISSION = {
    "task_key": "k",
    "task_name": "t",
    "owner": "alice",
    "credential_id": 1,
    "queue": ["DEMO", "OTHER"],
    "ti": {"dag_id": "d", "run_id": "r", "task_id": "t"},
    "jobs": [{"job_name": "j", "argv": ["true"]}],
}


def test_a_whole_reader_reads_what_the_model_is_and_asks_for_all_of_it() -> None:
    reader = WholeReader(JobSubmission)
    content = json.dumps(SUBMISSION).encode()
    found = reader.validate_json(content)
    assert isinstance(found, JobSubmission)
    assert found.model_dump() == JobSubmission.model_validate_json(content).model_dump()
    assert found.model_copy(update={"queue": "X"}).queues == ["X"]
    for name in SUBMISSION:
        with pytest.raises(RequestValidationError) as missing:
            reader.validate_json(json.dumps({key: SUBMISSION[key] for key in SUBMISSION if key != name}).encode())
        assert missing.value.errors() == [{"type": "missing", "loc": ("body", name)}]
    for name in (*SUBMISSION, "scripts", "generation", "start_over", "inputs_now", "surplus"):
        for wrong in (None, {"": ""}, [{}], "\0", -1.5):
            changed = json.dumps(SUBMISSION | {name: wrong}).encode()
            with pytest.raises(ValidationError) as plain:
                JobSubmission.model_validate_json(changed)
            with pytest.raises(ValidationError) as whole:
                reader.validate_json(changed)
            assert [each["loc"] for each in whole.value.errors()] == [each["loc"] for each in plain.value.errors()]
