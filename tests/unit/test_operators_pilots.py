"""The pilot operator: intent first, then the computing element, then the record, whatever happened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from support.airflow_connection import connect
from support.canary import Canaries
from support.http_stub import Answer, Stub, http_stub

from airpanda.computing.elements import (
    CEUnavailableError,
    ComputingElementError,
    Handle,
    PilotBatch,
    Submission,
    SubmitUncertainError,
)
from airpanda.computing.queues import parse_queue
from airpanda.core.errors import NotFoundError
from airpanda.operators import pilots
from airpanda.operators.pilots import PilotSubmitOperator

QUEUE = """
[queue]
name = "DEMO"
[slot]
cores = 1
memory_mib = 100
disk_mib = 100
walltime_s = 100
[ce]
kind = "local"
directory = "/nowhere"
[pilot]
code = "/code"
dispatcher_url = "https://localhost:1"
ca_dir = "/ca"
proxy = "/proxy"
"""
BATCH = {"batch_id": 4, "tag": "ap-1", "queue": "DEMO", "state": "submitted", "pilots": []}
RECORDED = Answer(200, json.dumps(BATCH).encode())


class Element:
    """Stands in for a computing element; takes or refuses a batch."""

    name = "local:DEMO"

    def __init__(self, error: ComputingElementError | None) -> None:
        self.error = error
        self.batches: list[PilotBatch] = []
        self.closed = False

    def submit(self, batch: PilotBatch) -> Submission:
        self.batches.append(batch)
        if self.error is not None:
            raise self.error
        return Submission(batch.tag, {pilot: Handle(f"h-{pilot}") for pilot in batch.tokens})

    def close(self) -> None:
        self.closed = True


def intended(token: str) -> Answer:
    queue = parse_queue(QUEUE, "DEMO.toml").to_wire()
    tickets = [{"pilot_id": n, "token": token} for n in (8, 9)]
    return Answer(200, json.dumps({"batch_id": 4, "tag": "ap-1", "pilots": tickets, "queue": queue}).encode())


def run(monkeypatch: pytest.MonkeyPatch, element: Element, token: str, *more: Answer) -> tuple[Any, Stub]:
    monkeypatch.setattr(pilots, "element_of", lambda _queue, _wrapper: element)
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=1, id="u")
    with http_stub(*(more or (intended(token), RECORDED))) as stub:
        connect(monkeypatch, port=stub.port)
        operator = PilotSubmitOperator(task_id="t", panda_queue="DEMO", n_pilots="2")
        try:
            return operator.execute({"ti": ti}), stub
        except ComputingElementError as error:
            return error, stub


def recorded(stub: Stub) -> Mapping[str, Any]:
    assert stub.seen[-1].path == "/v1/batch/4/record"
    body: Mapping[str, Any] = json.loads(stub.seen[-1].body)
    return body


def test_pilots_are_on_record_before_and_after(monkeypatch: pytest.MonkeyPatch, canaries: Canaries) -> None:
    token = canaries.plant("pilot token")
    element = Element(None)
    result, stub = run(monkeypatch, element, token)
    assert stub.seen[0].path == "/v1/batch/intend"
    assert recorded(stub) == {
        "state": "submitted", "ce": "local:DEMO", "handles": {"8": "h-8", "9": "h-9"}, "reason": "", "fence": 1,
    }  # fmt: skip
    assert {n: t.reveal() for n, t in element.batches[0].tokens.items()} == {8: token, 9: token}
    assert result == {"batch_id": 4, "tag": "ap-1", "n_pilots": 2, "ce_job_ids": ["h-8", "h-9"]}
    assert element.closed
    assert not canaries.shown_in(json.dumps(result) + repr(element.batches))


@pytest.mark.parametrize(
    ("error", "state"), [(CEUnavailableError("gone"), "failed"), (SubmitUncertainError("silent"), "uncertain")]
)
def test_a_failed_submission_is_recorded_as_what_it_was(
    monkeypatch: pytest.MonkeyPatch, error: ComputingElementError, state: str
) -> None:
    element = Element(error)
    result, stub = run(monkeypatch, element, "t")
    assert result is error
    assert (recorded(stub)["state"], recorded(stub)["reason"]) == (state, str(error))
    assert element.closed


def test_without_an_intent_nothing_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    element = Element(None)
    with pytest.raises(NotFoundError):
        run(monkeypatch, element, "t", Answer(404, b"{}"))
    assert element.batches == []
