"""The trigger: one event, patience with an absent dispatcher, and a kill that touches only its own jobs."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from support.airflow_connection import connect
from support.http_stub import Answer, http_stub

from airpanda.core.errors import ServiceError
from airpanda.hooks.panda import PandaHook
from airpanda.messages import JobStatus, TaskProgress
from airpanda.triggers.panda_task import PandaTaskTrigger, describe

TI = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, "try_number": 2, "ti_id": "u"}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airpanda.triggers.settling.SETTLE_S", 0.0)


def progress(done: bool) -> Answer:
    counts = {"finished": 2} if done else {"finished": 1, "running": 1}
    return Answer(200, json.dumps([{"task_id": 7, "counts": counts, "total": 2, "done": done}]).encode())


KILLED = Answer(200, json.dumps({"task_id": 7, "counts": {"cancelled": 2}, "total": 2, "done": True}).encode())


def refusal(status: int) -> Answer:
    return Answer(status, json.dumps({"detail": "because", "code": "c"}).encode())


def trigger() -> PandaTaskTrigger:
    return PandaTaskTrigger(panda_task_id=7, ti=TI, poll_s=0.01, panda_conn_id="panda_default")


async def events(subject: PandaTaskTrigger) -> list[Any]:
    return [event.payload async for event in subject.run()]


async def test_it_fires_once_when_all_jobs_are_final(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(progress(False), progress(False), progress(True)) as stub:
        connect(monkeypatch, port=stub.port)
        assert await events(trigger()) == [{"panda_task_id": 7, "done": True, "note": "", "returns": 0}]
    assert len(stub.seen) == 3


def test_its_log_says_whose_pilots_are_silent() -> None:
    now = TaskProgress(task_id=7, counts={JobStatus.FINISHED: 1, JobStatus.RUNNING: 2}, total=3, done=False)
    assert describe(now) == "1 of 3 jobs final (finished 1, running 2)"
    for n, says in ((1, ", 1 suspected: its pilot is silent"), (2, ", 2 suspected: their pilots are silent")):
        assert describe(now.model_copy(update={"suspected": n})) == describe(now) + says


async def test_an_absent_dispatcher_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(refusal(503), refusal(503), progress(True)) as stub:
        connect(monkeypatch, port=stub.port)
        assert (await events(trigger()))[0]["done"]
    assert len(stub.seen) == 3


async def test_the_pause_grows_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    real_sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr("airpanda.hooks.board.asyncio.sleep", note)
    with http_stub(*[refusal(503)] * 14, progress(False), progress(True)) as stub:
        connect(monkeypatch, port=stub.port)
        await events(trigger())
    assert pauses[:3] == [0.02, 0.04, 0.08]
    assert max(pauses) == 60.0
    assert pauses[-1] == 0.01, "an answer ends the patience"


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_ends_the_wait_with_its_reason(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with http_stub(refusal(status)) as stub:
        connect(monkeypatch, port=stub.port)
        (event,) = await events(trigger())
    assert event["done"] is False
    assert "because" in event["note"]


async def test_a_panda_task_that_is_gone_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(Answer(200, b"[]")) as stub:
        connect(monkeypatch, port=stub.port)
        (event,) = await events(trigger())
    assert (event["done"], event["note"]) == (False, "there is no panda task 7 for this client any more")


async def test_all_who_wait_ask_in_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(done: bool) -> Answer:
        counts = {"finished": 1} if done else {"running": 1}
        views = [{"task_id": n, "counts": counts, "total": 1, "done": done} for n in range(300)]
        return Answer(200, json.dumps(views).encode())

    with http_stub(of(False), of(False), of(True)) as stub:
        connect(monkeypatch, port=stub.port)
        given: dict[str, Any] = {"ti": TI, "poll_s": 0.5, "panda_conn_id": "panda_default"}
        waiting = [PandaTaskTrigger(panda_task_id=n, **given) for n in range(300)]
        ended = await asyncio.gather(*map(events, waiting))
    assert [event["panda_task_id"] for (event,) in ended] == list(range(300))
    asked = [json.loads(seen.body)["task_ids"] for seen in stub.seen]
    assert len(asked) <= 4, "one question for each turn, the first one perhaps for those who came first"


async def test_a_token_that_was_changed_in_the_connection_is_used_without_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with http_stub(progress(False), refusal(401), progress(True)) as stub:
        connect(monkeypatch, port=stub.port, password="old")
        waiting = asyncio.create_task(events(trigger()))
        while not stub.seen:
            await asyncio.sleep(0.005)
        connect(monkeypatch, port=stub.port, password="new")
        (event,) = await waiting
    assert event["done"]
    assert [seen.authorization for seen in stub.seen] == ["Bearer old", "Bearer old", "Bearer new"]


async def test_a_connection_that_cannot_be_read_ends_the_wait_instead_of_hanging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def gone(_cls: type[PandaHook], _conn_id: str) -> Any:
        raise LookupError("there is no such Connection")

    monkeypatch.setattr(PandaHook, "aget_connection", classmethod(gone))
    with pytest.raises(LookupError):
        await asyncio.wait_for(events(trigger()), 60)


async def test_it_never_fires_before_the_scheduler_can_have_seen_the_deferral(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airpanda.triggers.settling.SETTLE_S", 0.3)
    for answer in (progress(True), refusal(404)):
        with http_stub(answer) as stub:
            connect(monkeypatch, port=stub.port)
            began = time.monotonic()
            await events(trigger())
            assert time.monotonic() - began >= 0.3


async def test_a_kill_names_the_try_it_acts_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(KILLED) as stub:
        connect(monkeypatch, port=stub.port)
        await trigger().on_kill()
    assert (stub.seen[0].method, stub.seen[0].path) == ("POST", "/v1/task/7/kill")
    assert json.loads(stub.seen[0].body)["ti"] == TI


async def test_a_kill_that_cannot_be_told_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, port=1)
    with pytest.raises(ServiceError):
        await trigger().on_kill()


def test_it_survives_being_stored() -> None:
    path, arguments = trigger().serialize()
    module, name = path.rsplit(".", 1)
    again = getattr(__import__(module, fromlist=[name]), name)(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)
