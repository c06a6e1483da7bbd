"""Waiting for others' jobs: not yet, done, and what will never be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from support.airflow_connection import connect
from support.http_stub import Answer, http_stub

from airpanda.core.errors import NotFoundError
from airpanda.sensors.jobs import PandaJobSensor, PandaTaskSensor
from airpanda.triggers.panda_task import PandaTaskTrigger


def progress(**counts: int) -> Answer:
    done = not counts.get("running")
    body = {"task_id": 7, "counts": counts, "total": sum(counts.values()), "done": done}
    return Answer(200, json.dumps(body).encode())


def job(status: str) -> Answer:
    output = {"lfn": "o", "source": "panda:11/o", "size": 1, "sha256": "0" * 64, "access": "owner"}
    body = {
        "panda_id": 11, "task_id": 7, "job_name": "j", "owner": "alice", "owner_dn": "/CN=Alice", "queue": "DEMO",
        "status": status, "attempt_nr": 1, "max_attempt": 3, "ti": {"dag_id": "d", "run_id": "r", "task_id": "t"},
        "outputs": [output], "attempts": [], "reason": "stopped by its owner",
    }  # fmt: skip
    return Answer(200, json.dumps(body).encode())


def poke(monkeypatch: pytest.MonkeyPatch, answer: Answer, sensor: Any) -> Any:
    with http_stub(answer) as stub:
        connect(monkeypatch, port=stub.port)
        return sensor.poke({})


@pytest.mark.parametrize(
    ("answer", "at_least", "done", "value"),
    [
        (progress(finished=1, running=1), None, False, None),
        (progress(finished=2), None, True, {"finished": 2}),
        (progress(finished=1, failed=1), "1", True, {"finished": 1, "failed": 1}),
    ],
)
def test_a_panda_task(monkeypatch: pytest.MonkeyPatch, answer: Answer, at_least: Any, done: bool, value: Any) -> None:
    found = poke(monkeypatch, answer, PandaTaskSensor(task_id="t", panda_task_id="7", at_least=at_least))
    assert (bool(found.is_done), found.xcom_value) == (done, value)


def test_a_panda_task_that_ended_badly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AirflowFailException, match="ended with 1 finished jobs of 2 that must"):
        poke(monkeypatch, progress(finished=1, failed=1), PandaTaskSensor(task_id="t", panda_task_id=7))


def test_a_panda_task_is_waited_for_in_the_triggerer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = PandaTaskSensor(task_id="t", panda_task_id="7", deferrable=True, poke_interval=9)
    with http_stub(progress(running=1), progress(running=2), progress(finished=2)) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(TaskDeferred) as first:
            sensor.execute({})
        with pytest.raises(TaskDeferred):
            sensor.execute_complete({}, {"done": True, "note": ""})  # somebody has re-opened a job meanwhile
        assert sensor.execute_complete({}, {"done": True, "note": ""}) == {"finished": 2}
    path, arguments = first.value.trigger.serialize()
    trigger = PandaTaskTrigger(**arguments)
    assert trigger.serialize() == (path, arguments)
    assert (trigger.panda_task_id, trigger.poll_s) == (7, 9)
    with pytest.raises(AirflowFailException, match="could not be followed: no such task"):
        sensor.execute_complete({}, {"done": False, "note": "no such task"})


def asked(sensor: Any) -> Any:
    return sensor.execute({}) if getattr(sensor, "deferrable", False) else sensor.poke({})


NONE = ["", "None", "seven", "-1", "1.5", -1, 1.5, True, [], "9" * 19]


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize(
    ("kind", "field", "others"),
    [
        (PandaTaskSensor, "panda_task_id", {}),
        (PandaTaskSensor, "panda_task_id", {"deferrable": True}),
        (PandaTaskSensor, "at_least", {"panda_task_id": 7}),
        (PandaJobSensor, "panda_id", {}),
    ],
)
def test_a_number_that_is_none_after_rendering_fails_at_once(
    kind: Any, field: str, others: dict[str, Any], value: Any
) -> None:
    with pytest.raises(AirflowFailException, match=rf"^task t: {field} is .*; correct the DAG$"):
        asked(kind(task_id="t", **others | {field: value}))


@pytest.mark.parametrize(("kind", "field"), [(PandaTaskSensor, "panda_task_id"), (PandaJobSensor, "panda_id")])
def test_an_xcom_that_is_not_there_is_said(kind: Any, field: str) -> None:
    with pytest.raises(AirflowFailException, match=rf"{field} is empty: its template, or the XCom"):
        asked(kind(task_id="t", **{field: None}))


async def test_a_cleared_sensor_kills_nobodys_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(progress(running=1)) as stub:
        connect(monkeypatch, port=stub.port)
        await PandaTaskTrigger(panda_task_id=7, ti=None, panda_conn_id="panda_default").on_kill()
    assert stub.seen == []


def test_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not poke(monkeypatch, job("running"), PandaJobSensor(task_id="t", panda_id=11)).is_done
    found = poke(monkeypatch, job("finished"), PandaJobSensor(task_id="t", panda_id=11))
    assert found.xcom_value == [{"lfn": "o", "source": "panda:11/o", "size": 1, "sha256": "0" * 64}]


@pytest.mark.parametrize("status", ["failed", "cancelled", "closed"])
def test_a_job_that_ended_badly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    with pytest.raises(AirflowFailException, match=f"PandaID 11 is {status}: stopped by its owner"):
        poke(monkeypatch, job(status), PandaJobSensor(task_id="t", panda_id=11))


def test_what_does_not_exist_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError):
        poke(monkeypatch, Answer(404, b'{"detail": "there is none"}'), PandaJobSensor(task_id="t", panda_id=11))
