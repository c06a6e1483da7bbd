"""The pilot operator: intent first, then the computing element, then the record, whatever happened."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from support.airflow_connection import connect
from support.canary import Canaries
from support.http_stub import Answer, Stub, http_stub

from airpanda.computing.elements import (
    CEUnavailableError,
    ComputingElementError,
    Handle,
    Limits,
    Outcome,
    PilotBatch,
    PilotJobState,
    Status,
    Submission,
    SubmitUncertainError,
)
from airpanda.computing.queues import parse_queue
from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import AirpandaError, ConflictError, NotFoundError
from airpanda.hooks import submission
from airpanda.hooks.panda import PandaHook
from airpanda.hooks.submission import observe_pilots
from airpanda.messages import BatchView
from airpanda.operators import pilots
from airpanda.operators.pilots import PilotSubmitOperator
from airpanda.sensors.pilots import PilotSensor
from airpanda.triggers import pilots as triggers
from airpanda.triggers.pilots import PilotBatchTrigger, judge

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
    limits = Limits(max_batch=10, max_handles=10)

    def __init__(self, error: ComputingElementError | None) -> None:
        self.error = error
        self.batches: list[PilotBatch] = []
        self.closed = False
        self.cancelled: list[Handle] = []

    def cancel(self, handles: list[Handle]) -> dict[Handle, Outcome]:
        self.cancelled += handles
        return dict.fromkeys(handles, Outcome.ACCEPTED)

    def status(self, handles: list[Handle]) -> dict[Handle, Status]:
        return dict.fromkeys(handles, Status(PilotJobState.FAILED, 1))

    def find(self, tag: str) -> dict[Handle, Status]:
        return {Handle("found"): Status(PilotJobState.RUNNING)}

    def fetch(self, handle: Handle, *, tail_bytes: int = 0) -> bytes:
        return b"no Python here\n"

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
    ti = fake_ti()
    with http_stub(*(more or (intended(token), RECORDED))) as stub:
        connect(monkeypatch, port=stub.port)
        operator = PilotSubmitOperator(task_id="t", panda_queue="DEMO", n_pilots="2")
        try:
            return operator.execute({"ti": ti}), stub
        except ComputingElementError as error:
            return error, stub


def fake_ti() -> Any:
    names = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, "try_number": 1, "id": "u"}
    return SimpleNamespace(**names, xcom_push=lambda **_: None)


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


def test_a_repeat_that_fails_says_nothing_of_what_an_earlier_call_has_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.loads(intended("t").body)
    again = Answer(200, json.dumps({**first, "fence": 2, "state": "uncertain"}).encode())
    _, stub = run(monkeypatch, Element(CEUnavailableError("gone")), "t", again, RECORDED)
    assert (recorded(stub)["state"], recorded(stub)["fence"]) == ("uncertain", 2)


def test_without_an_intent_nothing_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    element = Element(None)
    with pytest.raises(NotFoundError):
        run(monkeypatch, element, "t", Answer(404, b"{}"))
    assert element.batches == []


def batch_view(*states: str, registered: int = 0, ended: int = 0, **more: Any) -> dict[str, Any]:
    """A batch whose first pilots have registered, or ended."""
    found = []
    for n, state in enumerate(states):
        times = {"registered_at": "2026-01-01T00:00:00Z" if n < registered else None, "last_seen_at": None}
        times["ended_at"] = "2026-01-01T00:00:00Z" if n < ended else None
        pilot = {"pilot_id": 8 + n, "batch_id": 4, "queue": "DEMO", "ce": "local:DEMO", "ce_job_id": f"h-{8 + n}"}
        found.append(pilot | {"state": state, "node": "", "reason": "broken" if n < ended else ""} | times | more)
    return BATCH | {"pilots": found}


def answer(body: Any) -> Answer:
    return Answer(200, json.dumps(body).encode())


def factory_view(waiting: int = 0, handle: str = "h", **kinds: int) -> Answer:
    pilot = {
        "batch_id": 1,
        "ce": "c",
        "handle": handle,
        "ce_state": "",
        "age_s": 1,
        "unheard_s": 0,
        "asked_to_end": False,
    }
    live = [pilot | {"pilot_id": n, "kind": kind} for kind, m in kinds.items() for n in range(m)]
    return answer(
        {
            "queue": parse_queue(QUEUE, "DEMO.toml").to_wire(), "installation": "0" * 8, "fence": 0, "memory": {},
            "demand": {"waiting": waiting, "waiting_cores": waiting}, "pilots": live, "batches": [], "queue_s": {},
            "nodes": [], "bad_nodes": {}, "open": [],
        }
    )  # fmt: skip


def test_a_submission_that_is_done_already_is_adopted_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    element = Element(None)
    known = {"batch_id": 4, "tag": "ap-1", "pilots": [], "queue": parse_queue(QUEUE, "q").to_wire()}
    done = answer(known | {"state": "submitted", "fence": 1})
    result, _ = run(monkeypatch, element, "t", done, answer(batch_view("submitted", "started")))
    assert (result["n_pilots"], result["ce_job_ids"], element.batches) == (2, ["h-8", "h-9"], [])


def test_a_submission_that_may_still_go_on_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(submission.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(submission.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    held = Answer(409, json.dumps({"detail": "another submission is going on"}).encode())
    result, stub = run(monkeypatch, Element(None), "t", held, held, intended("t"), RECORDED)
    assert (result["n_pilots"], len(stub.seen)) == (2, 4)
    with pytest.raises(ConflictError):
        run(monkeypatch, Element(None), "t", held)
    assert now[0] < 400


def test_a_submission_does_not_begin_when_it_could_outlast_its_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(submission.time, "monotonic", lambda: now.__setitem__(0, now[0] + 40.0) or now[0])
    element = Element(None)
    with pytest.raises(AirpandaError, match="cannot be held for long enough"):
        run(monkeypatch, element, "t")
    assert element.batches == []


def test_it_waits_for_pilots_that_register_without_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilots, "element_of", lambda _queue, _wrapper: Element(None))
    operator = PilotSubmitOperator(task_id="t", panda_queue="DEMO", n_pilots=2, wait_for=9)
    with http_stub(intended("token"), RECORDED) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute({"ti": fake_ti()})
    trigger = deferred.value.trigger
    assert isinstance(trigger, PilotBatchTrigger)
    assert (trigger.batch_id, trigger.wanted, trigger.ti["ti_id"]) == (4, 2, "u")
    path, arguments = trigger.serialize()
    assert path == "airpanda.triggers.pilots.PilotBatchTrigger"
    assert PilotBatchTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)
    assert "token" not in json.dumps(arguments)


@pytest.mark.parametrize(
    ("view", "verdict"),
    [
        (batch_view("submitted", "submitted"), None),
        (batch_view("started", "submitted", registered=1), None),
        (batch_view("started", "started", registered=2), True),
        (batch_view("finished", "finished", registered=2, ended=2), True),
        (batch_view("failed", "submitted", ended=1), None),
        (batch_view("failed", "failed", ended=2), False),
        (batch_view("failed", "benched", ended=1), False),
    ],
)
def test_the_wait_ends_when_enough_have_registered_or_none_can_any_more(view: Any, verdict: bool | None) -> None:
    found = judge(BatchView.model_validate(view), 2)
    assert (found and found[0]) == verdict
    if verdict is False:
        assert found is not None
        assert "0 of 2 ever registered: broken" in found[1]


async def test_the_trigger_outlasts_an_absent_dispatcher_and_fires_when_the_deferral_has_been_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airpanda.triggers.settling.SETTLE_S", 0.5)
    began = time.monotonic()
    away = Answer(503, json.dumps({"detail": "restarting"}).encode())
    with http_stub(away, answer(batch_view("submitted")), answer(batch_view("started", registered=1))) as stub:
        connect(monkeypatch, port=stub.port)
        trigger = PilotBatchTrigger(
            batch_id=4, panda_queue="DEMO", wanted=1, ti={}, poll_s=0.01, panda_conn_id="panda_default"
        )
        events = [event.payload async for event in trigger.run()]
    assert [(event["batch_id"], event["good"]) for event in events] == [(4, True)]
    assert time.monotonic() - began >= 0.5


@pytest.mark.parametrize("is_changed", [True, False])
async def test_a_token_that_was_changed_in_the_connection_is_used_by_a_wait_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, is_changed: bool
) -> None:
    monkeypatch.setattr("airpanda.triggers.settling.SETTLE_S", 0.0)
    revoked = Answer(401, json.dumps({"detail": "revoked"}).encode())
    last = answer(batch_view("started", registered=1)) if is_changed else revoked
    with http_stub(answer(batch_view("submitted")), revoked, last) as stub:
        connect(monkeypatch, port=stub.port, password="old")
        trigger = PilotBatchTrigger(
            batch_id=4, panda_queue="DEMO", wanted=1, ti={}, poll_s=0.05, panda_conn_id="panda_default"
        )
        waiting = asyncio.create_task(anext(trigger.run()))
        while not stub.seen:
            await asyncio.sleep(0.001)
        connect(monkeypatch, port=stub.port, password="new" if is_changed else "old")
        payload = (await asyncio.wait_for(waiting, 60)).payload
    assert payload["good"] is is_changed
    assert is_changed or "revoked" in payload["note"]
    assert [seen.authorization for seen in stub.seen][2:] == ["Bearer new" if is_changed else "Bearer old"]


@pytest.mark.parametrize("is_mine", [True, False])
async def test_a_cleared_waiting_task_ends_its_pilots_unless_a_newer_try_has_them(
    monkeypatch: pytest.MonkeyPatch, is_mine: bool
) -> None:
    element = Element(None)
    monkeypatch.setattr(triggers, "element_of", lambda _queue, _wrapper: element)
    view = batch_view("submitted", "started") if is_mine else BATCH
    ti = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, "try_number": 1, "ti_id": "u"}
    trigger = PilotBatchTrigger(batch_id=4, panda_queue="DEMO", wanted=1, ti=ti, panda_conn_id="panda_default")
    with http_stub(factory_view(), answer(view), Answer(204)) as stub:
        connect(monkeypatch, port=stub.port)
        await trigger.on_kill()
    assert json.loads(stub.seen[1].body)["ti"]["ti_id"] == "u"
    assert element.cancelled == ([Handle("h-8"), Handle("h-9")] if is_mine else [])
    assert element.closed is is_mine


@pytest.mark.parametrize(("cycled_s_ago", "asked"), [(60, False), (600, True), (None, True)])
def test_a_wait_asks_the_element_for_silent_pilots_where_no_factory_does(
    monkeypatch: pytest.MonkeyPatch, cycled_s_ago: int | None, asked: bool
) -> None:
    element = Element(None)
    cycled_at = None if cycled_s_ago is None else to_wire(utcnow() - timedelta(seconds=cycled_s_ago))
    state = {"queue": "DEMO", "state": "online", "live_pilots": 1, "decisions": [], "cycled_at": cycled_at}
    view = BatchView.model_validate(batch_view("started", "submitted", "submitted", registered=1))
    with http_stub(Answer(200, json.dumps([state]).encode()), factory_view(), Answer(204)) as stub:
        connect(monkeypatch, port=stub.port)
        observe_pilots(PandaHook().send, lambda _queue, _wrapper: element, Path("w"), view)
    assert element.closed is asked
    if asked:
        (told,) = [json.loads(seen.body) for seen in stub.seen if seen.path == "/v1/batch/observed"]
        assert [(p["pilot_id"], p["ce_state"]) for p in told["pilots"]] == [(9, "failed"), (10, "failed")]
    else:
        assert len(stub.seen) == 1


def test_pilots_that_never_registered_show_their_logs_and_the_task_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    element = Element(None)
    monkeypatch.setattr(pilots, "element_of", lambda _queue, _wrapper: element)
    views = (answer(batch_view("failed", ended=1)), factory_view(), Answer(204))
    event = {"batch_id": 4, "good": False, "note": "all have ended"}
    with http_stub(*views) as stub:
        connect(monkeypatch, port=stub.port)
        operator = PilotSubmitOperator(task_id="t", panda_queue="DEMO")
        with pytest.raises(AirflowException, match="all have ended"):
            operator.execute_complete({}, event)
    assert json.loads(stub.seen[-1].body) == {"text": "no Python here\n"}
    assert stub.seen[-1].path == "/v1/batch/4/pilot/8/log"
    assert element.closed


@pytest.mark.parametrize("is_mine", [True, False])
def test_a_kill_ends_what_this_try_owns_and_no_other(monkeypatch: pytest.MonkeyPatch, is_mine: bool) -> None:
    element = Element(None)
    monkeypatch.setattr(pilots, "element_of", lambda _queue, _wrapper: element)
    view = batch_view("submitted", "started", registered=0) if is_mine else BATCH
    with http_stub(intended("t"), RECORDED, factory_view(), answer(view), Answer(204)) as stub:
        connect(monkeypatch, port=stub.port)
        operator = PilotSubmitOperator(task_id="t", panda_queue="DEMO", n_pilots=2)
        operator.execute({"ti": fake_ti()})
        operator.on_kill()
    asked = json.loads(stub.seen[3].body)
    assert (stub.seen[3].path, asked["ti"]["ti_id"]) == ("/v1/batch/4/cancel", "u")
    assert element.cancelled == ([Handle("h-8"), Handle("h-9")] if is_mine else [])


def test_a_kill_in_the_middle_finds_the_pilots_by_their_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    element = Element(SubmitUncertainError("silent"))
    monkeypatch.setattr(pilots, "element_of", lambda _queue, _wrapper: element)
    view = batch_view("intended", ce_job_id="")
    with http_stub(intended("t"), RECORDED, factory_view(), answer(view), Answer(204)) as stub:
        connect(monkeypatch, port=stub.port)
        operator = PilotSubmitOperator(task_id="t", panda_queue="DEMO", n_pilots=2)
        with pytest.raises(SubmitUncertainError):
            operator.execute({"ti": fake_ti()})
        operator.on_kill()
    assert element.cancelled == [Handle("found")]


@pytest.mark.parametrize(("waiting", "there", "sent"), [(5, 1, 4), (5, 5, 0), (0, 0, 0), (1000, 0, 100)])
def test_enough_is_what_the_waiting_jobs_can_fill(
    monkeypatch: pytest.MonkeyPatch, waiting: int, there: int, sent: int
) -> None:
    monkeypatch.setattr(pilots, "element_of", lambda _queue, _wrapper: Element(None))
    intent = intended("t") if sent else Answer(404, b"{}")
    with http_stub(factory_view(waiting, idle=there, busy=3), intent, RECORDED) as stub:
        connect(monkeypatch, port=stub.port)
        result = PilotSubmitOperator(task_id="t", panda_queue="DEMO", n_pilots="enough").execute({"ti": fake_ti()})
    asked = json.loads(stub.seen[1].body)
    assert asked["only_known"] is (sent == 0)
    if sent:
        assert asked["n_pilots"] == sent
    else:
        assert (result["n_pilots"], result["batch_id"], len(stub.seen)) == (0, None, 2)


def test_what_no_element_has_taken_on_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilots, "element_of", lambda _queue, _wrapper: Element(None))
    for handle, sent in (("", 5), ("h", 2)):
        with http_stub(factory_view(5, handle=handle, queued=3), intended("t"), RECORDED) as stub:
            connect(monkeypatch, port=stub.port)
            PilotSubmitOperator(task_id="t", panda_queue="DEMO", n_pilots="enough").execute({"ti": fake_ti()})
        assert json.loads(stub.seen[1].body)["n_pilots"] == sent


def test_a_repeat_goes_on_with_its_own_batch_though_enough_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    element = Element(None)
    monkeypatch.setattr(pilots, "element_of", lambda _queue, _wrapper: element)
    operator = PilotSubmitOperator(task_id="t", panda_queue="DEMO", n_pilots="enough", wait_for=2)
    with http_stub(factory_view(2, idle=2), intended("t"), RECORDED) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute({"ti": fake_ti()})
    assert recorded(stub)["handles"] == {"8": "h-8", "9": "h-9"}
    assert (len(element.batches), getattr(deferred.value.trigger, "batch_id", None)) == (1, 4)
    with http_stub(factory_view(2, idle=2), intended("t"), Answer(404, b"{}")) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(NotFoundError):
            operator.execute({"ti": fake_ti()})


@pytest.mark.parametrize(("idle", "busy", "done"), [(0, 0, False), (1, 0, False), (1, 1, True)])
def test_the_sensor_counts_pilots_that_are_heard_of(
    monkeypatch: pytest.MonkeyPatch, idle: int, busy: int, done: bool
) -> None:
    with http_stub(factory_view(idle=idle, busy=busy, queued=5, silent=5)) as stub:
        connect(monkeypatch, port=stub.port)
        found = PilotSensor(task_id="s", panda_queue="DEMO", at_least=2).poke({})
    assert (found.is_done, found.xcom_value["queued"]) == (done, 5)
