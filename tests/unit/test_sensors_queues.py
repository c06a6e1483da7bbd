"""Waiting for a queue: not yet, done, and what will never be; in both ways of waiting."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from airflow.triggers.base import TriggerEvent
from support.airflow_connection import connect
from support.http_stub import Answer, http_stub

from airpanda.core.errors import NotAuthorisedError
from airpanda.hooks import panda as panda_module
from airpanda.sensors.queues import PandaQueueSensor
from airpanda.triggers import queues as trigger_module
from airpanda.triggers.queues import PandaQueueTrigger

SEEN = {"queue": "DEMO", "state": "online", "waiting": 5, "queued": 0, "idle": 1, "busy": 2, "silent": 0}


def queue(**values: Any) -> Answer:
    return Answer(200, json.dumps(SEEN | values).encode())


def sensor(**options: Any) -> PandaQueueSensor:
    return PandaQueueSensor(task_id="t", panda_queue="DEMO", **options)


def trigger(**options: Any) -> PandaQueueTrigger:
    wish = {"at_least_idle": 0, "at_most_waiting": None, "poll_s": 0.01}
    return PandaQueueTrigger(panda_queue="DEMO", panda_conn_id="panda_default", **wish | options)


@pytest.mark.parametrize(
    ("seen", "wish", "done"),
    [
        ({}, {}, True),
        ({"state": "offline"}, {}, False),
        ({}, {"at_least_idle": "1"}, True),
        ({}, {"at_least_idle": 2}, False),
        ({}, {"at_most_waiting": "5"}, True),
        ({}, {"at_most_waiting": 4}, False),
        ({"state": "offline"}, {"at_least_idle": 1, "at_most_waiting": 5}, False),
    ],
)
def test_a_queue_is_as_wished_or_not_in_both_ways_of_waiting(
    monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any], wish: dict[str, Any], done: bool
) -> None:
    with http_stub(queue(**seen)) as stub:
        connect(monkeypatch, port=stub.port)
        found = sensor(**wish).poke({})
        assert (bool(found.is_done), found.xcom_value) == (done, SEEN | seen)
        if done:
            assert sensor(deferrable=True, **wish).execute({}) == SEEN | seen
            return
        with pytest.raises(TaskDeferred) as deferred:
            sensor(deferrable=True, timeout=60, poke_interval=7, **wish).execute({})
    path, arguments = deferred.value.trigger.serialize()
    assert path == "airpanda.triggers.queues.PandaQueueTrigger"
    assert arguments["poll_s"] == 7
    assert deferred.value.timeout is not None
    assert PandaQueueTrigger(**arguments).serialize() == (path, arguments), "it survives being stored"


def test_no_sensor_asks_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(queue(state="offline")) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(TaskDeferred) as deferred:
            sensor(deferrable=True, poke_interval=0).execute({})
    assert deferred.value.trigger.poll_s == 1.0


@pytest.mark.parametrize(
    "wish",
    [
        {"at_least_idle": -1},
        {"at_least_idle": "few"},
        {"at_least_idle": None},
        {"at_least_idle": True},
        {"at_most_waiting": "-2"},
        {"at_most_waiting": ""},
        {"at_most_waiting": 1.5},
    ],
)
@pytest.mark.parametrize("deferrable", [True, False])
def test_a_number_that_is_none_fails_at_once(wish: dict[str, Any], deferrable: bool) -> None:
    (field,) = wish
    with pytest.raises(AirflowFailException, match=f"^task t: {field} is .*; correct the DAG$"):
        sensor(deferrable=deferrable, **wish).execute({})


@pytest.mark.parametrize("name", [None, "", " ", "None", 7])
@pytest.mark.parametrize("deferrable", [True, False])
def test_a_queue_without_a_name_fails_at_once(name: Any, deferrable: bool) -> None:
    subject = sensor(deferrable=deferrable)
    subject.panda_queue = name  # as rendered
    with pytest.raises(AirflowFailException, match="panda_queue names no queue"):
        subject.execute({}) if deferrable else subject.poke({})


def test_a_refusal_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(Answer(403, b'{"detail": "client c may not use queue DEMO"}')) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(NotAuthorisedError, match="may not use queue DEMO"):
            sensor().poke({})


async def fired(monkeypatch: pytest.MonkeyPatch, answers: list[Answer], **options: Any) -> tuple[TriggerEvent, int]:
    with http_stub(*answers) as stub:
        connect(monkeypatch, port=stub.port)
        events = [event async for event in trigger(**options).run()]
        assert len(events) == 1
        return events[0], len(stub.seen)


async def test_the_trigger_asks_until_the_queue_is_as_wished(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [queue(state="offline"), queue(idle=0), Answer(503, b"{}"), queue(idle=3)]
    event, asked = await fired(monkeypatch, answers, at_least_idle=2)
    assert (event.payload, asked) == ({"view": SEEN | {"idle": 3}}, 4)
    assert sensor().execute_complete({}, event.payload) == SEEN | {"idle": 3}


async def test_a_refusal_ends_the_wait_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    event, _ = await fired(monkeypatch, [Answer(400, b'{"detail": "there is no queue DEMO"}')])
    with pytest.raises(AirflowFailException, match="there is no queue DEMO"):
        sensor().execute_complete({}, event.payload)


async def test_the_pause_grows_while_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(trigger_module.asyncio, "sleep", sleep)
    answers = [Answer(503, b"{}")] * 3 + [queue(state="offline"), queue()]
    await asyncio.wait_for(fired(monkeypatch, answers, poll_s=100.0), 20)
    assert pauses == [200.0, 300.0, 300.0, 100.0]


async def test_it_never_fires_before_the_scheduler_can_have_seen_the_deferral(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airpanda.triggers.settling.SETTLE_S", 0.3)
    for answer in (queue(), Answer(404, b"{}")):
        began = time.monotonic()
        await fired(monkeypatch, [answer])
        assert time.monotonic() - began >= 0.3


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panda_module.time, "sleep", lambda _: None)
    monkeypatch.setattr("airpanda.triggers.settling.SETTLE_S", 0.0)
