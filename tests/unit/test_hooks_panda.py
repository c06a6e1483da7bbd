"""The hook: refusals become typed errors, secrets stay inside, transient failures of repeatable calls are repeated."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.airflow_connection import connect
from support.canary import Canaries
from support.http_stub import Answer, Stub, http_stub

from airpanda.core.errors import (
    ConfigurationError,
    ConflictError,
    NotAuthorisedError,
    NotFoundError,
    RequestError,
    ServiceError,
)
from airpanda.hooks import calls
from airpanda.hooks import panda as panda_module
from airpanda.hooks.address import Address
from airpanda.hooks.panda import PandaHook
from airpanda.messages import BatchIntent

INTENT = BatchIntent(queue="DEMO", n_pilots=1)
PROGRESS = json.dumps({"task_id": 7, "counts": {"finished": 2, "running": 1}, "total": 3, "done": False}).encode()


def problem(status: int, detail: str = "because", **headers: str) -> Answer:
    body = {"type": "about:blank", "title": "t", "status": status, "detail": detail, "code": "c"}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/problem+json", **headers})


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panda_module.time, "sleep", lambda _: None)


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, *answers: Answer, token: str = "t") -> Iterator[tuple[PandaHook, Stub]]:
    with http_stub(*answers) as stub:
        connect(monkeypatch, port=stub.port, password=token, extra_dejson={"base_path": "/panda"})
        yield PandaHook(), stub


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RequestError), (404, NotFoundError), (409, ConflictError), (401, NotAuthorisedError)]
    + [(403, NotAuthorisedError), (422, RequestError), (429, ServiceError), (500, ServiceError), (503, ServiceError)],
)
def test_refusals_are_typed_and_tell_why(monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception]) -> None:
    with served(monkeypatch, problem(status)) as (hook, _), pytest.raises(kind, match="because") as caught:
        hook.send(calls.progress(7))
    assert type(caught.value) is kind


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"\xff"])
def test_a_refusal_without_a_problem_document_is_still_a_sentence(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    with served(monkeypatch, Answer(404, body)) as (hook, _), pytest.raises(NotFoundError, match="no "):
        hook.send(calls.progress(7))


def test_an_answer_of_another_form_does_not_quote_it(monkeypatch: pytest.MonkeyPatch, canaries: Canaries) -> None:
    secret = canaries.plant("token")
    body = json.dumps({"batch_id": 1, "tag": "x", "pilots": [{"pilot_id": "?", "token": secret}], "queue": {}})
    intent = calls.intend_batch(INTENT)
    with (
        served(monkeypatch, Answer(200, body.encode())) as (hook, _),
        pytest.raises(ServiceError, match="another form") as caught,
    ):
        hook.send(intent)
    assert not caught.value.transient
    assert not canaries.shown_in(repr(caught.value))


def test_a_passing_failure_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, problem(503), problem(502), Answer(200, PROGRESS)) as (hook, stub):
        assert hook.send(calls.progress(7)).total == 3
    assert [seen.path for seen in stub.seen] == ["/panda/v1/task/7/progress"] * 3


def test_a_lasting_failure_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, problem(503)) as (hook, stub), pytest.raises(ServiceError):
        hook.send(calls.progress(7))
    assert len(stub.seen) == 5


def test_what_is_not_repeatable_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, problem(503)) as (hook, stub), pytest.raises(ServiceError):
        hook.send(calls.intend_batch(INTENT))
    assert len(stub.seen) == 1


def test_redirects_and_the_environment_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with served(monkeypatch, Answer(200, PROGRESS)) as (hook, stub):
        hook.send(calls.progress(7))
    assert len(stub.seen) == 1


def test_the_token_goes_into_the_header_and_into_no_log(
    monkeypatch: pytest.MonkeyPatch, canaries: Canaries, caplog: pytest.LogCaptureFixture
) -> None:
    token = canaries.plant("client token")
    caplog.set_level(logging.DEBUG)
    with served(monkeypatch, problem(401), token=token) as (hook, stub), pytest.raises(NotAuthorisedError) as caught:
        hook.send(calls.progress(7))
    assert stub.seen[0].authorization == f"Bearer {token}"
    assert not canaries.shown_in(caplog.text + repr(caught.value) + repr(hook.__dict__))


def test_a_dispatcher_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, port=1)
    with pytest.raises(ServiceError, match=r"panda_default.*cannot be reached"):
        PandaHook().send(calls.progress(7))


@pytest.mark.parametrize("lacking", [{"host": None}, {"password": None}])
def test_an_incomplete_connection_is_named(monkeypatch: pytest.MonkeyPatch, lacking: dict[str, None]) -> None:
    connect(monkeypatch, **lacking)
    with pytest.raises(ConfigurationError, match="'panda_default' needs"):
        PandaHook().send(calls.progress(7))


def test_a_token_that_was_changed_in_the_connection_is_used_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(problem(401), Answer(200, PROGRESS)) as stub:
        connect(monkeypatch, port=stub.port, password="old")
        hook = PandaHook()
        monkeypatch.setattr(hook, "_address", Address.of("c", PandaHook.get_connection("c")))
        connect(monkeypatch, port=stub.port, password="new")
        assert hook.send(calls.progress(7)).total == 3
    assert [seen.authorization for seen in stub.seen] == ["Bearer old", "Bearer new"]


def test_a_process_has_one_client_for_one_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, port=7)
    one, two = (Address.of("c", PandaHook.get_connection("c")) for _ in range(2))
    connect(monkeypatch, port=7, password="another")
    three = Address.of("c", PandaHook.get_connection("c"))
    connect(monkeypatch, port=8)
    four = Address.of("c", PandaHook.get_connection("c"))
    assert one.client() is two.client() is three.client()
    assert four.client() is not one.client()
