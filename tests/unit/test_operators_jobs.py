"""The job operators: what cannot succeed says so at once; failures explain themselves; retries change nothing twice."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from support.airflow_connection import connect
from support.http_stub import Answer, http_stub

from airpanda.operators.jobs import PandaJobOperator, PandaTaskOperator

CREDENTIAL = {"credential_id": 3, "owner": "alice"}
REPLY = Answer(200, json.dumps({"task_id": 7, "first_panda_id": 11, "n_jobs": 1, "created": True}).encode())


class Context(dict[str, Any]):
    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}
        ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=None, try_number=1, id="u")
        ti.xcom_push = lambda key, value: self.pushed.update({key: value})
        super().__init__(ti=ti)


def job_view(status: str = "finished", errors: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    attempt = {
        "attempt_nr": 1, "status": status, "pilot_id": 5, "node": "wn", "pilot_uid": 61001, "account_name": "alice",
        "account_uid": 61012, "identity_switched": True, "exit_code": 0, "errors": errors or [], "started_at": None,
        "ended_at": None, "wall_s": 1.5, "cpu_s": 1.0, "max_rss_mib": 10.0,
    }  # fmt: skip
    output = {"lfn": "o", "source": "panda:11/o", "size": 1, "sha256": "0" * 64, "access": "owner"}
    return {
        "panda_id": 11, "task_id": 7, "job_name": "j", "owner": "alice", "owner_dn": "/CN=Alice", "queue": "DEMO",
        "status": status, "attempt_nr": 1, "max_attempt": 3, "ti": {"dag_id": "d", "run_id": "r", "task_id": "t"},
        "outputs": [output], "attempts": [attempt],
    }  # fmt: skip


def jobs(*views: dict[str, Any]) -> Answer:
    return Answer(200, json.dumps(views).encode())


def operator(**changes: Any) -> PandaTaskOperator:
    given = {
        "jobs": [{"job_name": "j", "argv": ["true"]}],
        "payload_owner": "alice",
        "credential": CREDENTIAL,
        "panda_queue": "DEMO",
    }
    return PandaTaskOperator(task_id="t", **given | changes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"jobs": []}, "jobs"),
        ({"jobs": None}, "list"),
        ({"jobs": [{"argv": ["true"]}]}, "job_name"),
        ({"jobs": [{"job_name": "j", "argv": []}]}, "argv"),
        ({"jobs": [{"job_name": "j", "argv": ["true"], "walltime": 3}]}, "walltime"),
        ({"jobs": [{"job_name": "j", "argv": ["true"], "outputs": [{"lfn": "../x"}]}]}, "lfn"),
        ({"jobs": [{"job_name": "j", "argv": ["true"], "env": {"A B": "1"}}]}, "env"),
        ({"payload_owner": "a b"}, "owner"),
        ({"panda_queue": ""}, "queue"),
        ({"credential": None}, "credential"),
        ({"credential": {}}, "credential"),
    ],
)
def test_what_can_never_succeed_fails_without_a_retry(change: dict[str, Any], named: str) -> None:
    with pytest.raises(AirflowFailException, match=named):
        operator(**change).execute(Context())


def test_it_submits_under_a_key_of_its_own_and_waits_without_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context()
    with http_stub(REPLY) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(TaskDeferred) as deferred:
            operator().execute(context)
    sent = json.loads(stub.seen[0].body)
    assert sent["task_key"] == "d/r/t/-1"
    assert sent["jobs"][0]["argv"] == ["true"]
    assert deferred.value.trigger.panda_task_id == 7
    assert context.pushed == {"panda_task_id": 7}


def test_the_result_holds_what_the_next_task_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(jobs(job_view()), Answer(200, b"hello from the payload")) as stub:
        connect(monkeypatch, port=stub.port)
        result = operator().execute_complete(Context(), {"panda_task_id": 7, "done": True, "note": ""})
    assert result["finished"] == 1
    assert result["outputs"] == [
        {"panda_id": 11, "lfn": "o", "source": "panda:11/o", "size": 1, "sha256": "0" * 64},
    ]


@pytest.mark.parametrize(
    ("blame", "who"), [("user", "owner must act"), ("site", "administrator must act"), ("system", "not the payload")]
)
def test_a_failure_says_first_what_failed_and_who_must_act(
    monkeypatch: pytest.MonkeyPatch, blame: str, who: str
) -> None:
    errors = [{"source": "pilot", "code": 1226, "diag": "no mapping", "blame": blame}]
    with http_stub(jobs(job_view(), job_view("failed", errors)), Answer(404)) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(AirflowException, match=who) as caught:
            operator().execute_complete(Context(), {"panda_task_id": 7, "done": True, "note": ""})
    assert str(caught.value).startswith("1 of 2 jobs did not finish. PandaID 11 (j) is failed: pilot error 1226")


def test_a_wait_that_was_refused_fails_with_its_reason() -> None:
    with pytest.raises(AirflowException, match="token was revoked"):
        operator().execute_complete(Context(), {"panda_task_id": 7, "done": False, "note": "the token was revoked"})


def test_one_job_takes_plain_output_names_and_needs() -> None:
    job = PandaJobOperator(
        task_id="peak", argv=["python3", "a.py"], outputs=["a.png", {"lfn": "b", "access": "vo"}], needs={"cores": 2},
        payload_owner="alice", credential=CREDENTIAL, panda_queue="DEMO",
    )  # fmt: skip
    (spec,) = job.specs()
    assert [(o.lfn, o.access) for o in spec.outputs] == [("a.png", "owner"), ("b", "vo")]
    assert spec.cores == 2


def test_a_kill_cancels_only_what_this_try_owns(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Answer(200, json.dumps({"task_id": 7, "counts": {}, "total": 1, "done": False}).encode())
    with http_stub(REPLY, progress) as stub:
        connect(monkeypatch, port=stub.port)
        subject = operator()
        with pytest.raises(TaskDeferred):
            subject.execute(Context())
        subject.on_kill()
    assert json.loads(stub.seen[1].body)["ti"]["ti_id"] == "u"
