"""The sensor and the daily warning: what they make of the dispatcher's list."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from support.airflow_connection import connect
from support.http_stub import Answer, http_stub

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import NotAuthorisedError
from airpanda.operators.forecast import CredentialForecastOperator
from airpanda.sensors.proxies import ProxyLifetimeSensor

DAG = Path(__file__).resolve().parents[2] / "dags" / "panda_credentials.py"


def view(number: int, hours: float, scope: str = "user") -> dict[str, Any]:
    return {
        "credential_id": number, "owner": "alice", "owner_dn": "/O=Test Grid/CN=Alice", "fqans": [],
        "server": "localhost:7512", "username": "u", "cred_name": "0" * 32, "scope": scope, "state": "staged",
        "expires_at": to_wire(utcnow() + timedelta(hours=hours)),
    }  # fmt: skip


def listed(*views: dict[str, Any]) -> Answer:
    return Answer(200, json.dumps(views).encode())


def poke(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> Any:
    with http_stub(answer) as stub:
        connect(monkeypatch, port=stub.port)
        sensor = ProxyLifetimeSensor(task_id="t", payload_owner="alice", min_lifetime=timedelta(hours=6))
        found = sensor.poke({})
    assert json.loads(stub.seen[0].body)["owner"] == "alice"
    return found


@pytest.mark.parametrize("views", [[], [view(1, 5)], [view(1, 40, "task"), view(2, 30, "job"), view(3, 5)]])
def test_the_sensor_waits_for_what_lasts_long_enough(
    monkeypatch: pytest.MonkeyPatch, views: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert poke(monkeypatch, listed(*views)).is_done is False


def test_the_sensor_hands_on_a_reference_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    found = poke(monkeypatch, listed(view(1, 40, "task"), view(2, 30), view(3, 8)))
    assert found.is_done is True
    assert found.xcom_value["credential_id"] == 2
    assert set(found.xcom_value) == {"credential_id", "owner", "owner_dn", "expires_at"}


def test_a_refusal_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotAuthorisedError):
        poke(monkeypatch, Answer(401, b"{}"))


def test_the_forecast_warns_of_each_the_first_to_end_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with http_stub(listed(view(1, 20), view(2, 3))) as stub, caplog.at_level(logging.WARNING):
        connect(monkeypatch, port=stub.port)
        found = CredentialForecastOperator(task_id="t", hours="24").execute({})
    assert json.loads(stub.seen[0].body)["ends_within_s"] == 86400
    assert [each["credential_id"] for each in found] == [2, 1]


def test_nothing_that_ends_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(listed()) as stub:
        connect(monkeypatch, port=stub.port)
        assert CredentialForecastOperator(task_id="t").execute({}) == []


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
def test_the_dag_asks_daily() -> None:
    bag = DagBag(dag_folder=str(DAG))
    assert bag.import_errors == {}
    (dag,) = bag.dags.values()
    assert (dag.dag_id, list(dag.task_dict), dag.catchup) == ("panda_credentials", ["warn"], False)
