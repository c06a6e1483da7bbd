"""The job operators: what cannot succeed says so at once; failures explain themselves; retries change nothing twice."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from support.airflow_connection import connect, connection
from support.http_stub import Answer, http_stub

from airpanda.core.errors import ConflictError, CredentialError
from airpanda.hooks.myproxy import MyProxyHook
from airpanda.operators.jobs import PandaJobOperator, PandaTaskOperator
from airpanda.operators.outcome import PandaJobsFailed, PandaTaskLost

CREDENTIAL = {"credential_id": 3, "owner": "alice"}
REPLY = Answer(200, json.dumps({"task_id": 7, "first_panda_id": 11, "n_jobs": 1, "created": True}).encode())


class Context(dict[str, Any]):
    def __init__(self, *, try_number: int = 1, max_tries: int = 0) -> None:
        self.pushed: dict[str, Any] = {}
        ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=None, id="u")
        ti.try_number, ti.max_tries, ti.task = try_number, max_tries, SimpleNamespace(retries=0)
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


def progress(**counts: int) -> Answer:
    body = {"task_id": 7, "counts": counts, "total": sum(counts.values()), "done": True}
    return Answer(200, json.dumps(body).encode())


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
        ({"jobs": []}, "1 to 100000 jobs, and this one has 0"),
        ({"jobs": None}, "jobs, a list, or template"),
        ({"jobs": 7}, "list"),
        ({"jobs": [{"job_name": "j", "argv": ["true"]}] * 100_001}, "this one has 100001"),
        ({"jobs": None, "template": {"job_name": "j-{n}", "argv": ["true"]}}, "count, a number, or over, a list"),
        ({"jobs": None, "template": {"job_name": "j-{n}", "argv": ["true"]}, "count": "0"}, "has 0"),
        ({"jobs": None, "template": {"job_name": "j-{n}", "argv": ["true"]}, "count": 100_001}, "has 100001"),
        ({"jobs": None, "template": {"job_name": "j-{n}", "argv": ["true"]}, "count": ""}, "correct the DAG"),
        ({"jobs": None, "template": {"job_name": "j-{n}", "argv": ["true"]}, "over": "abc"}, "over must be a list"),
        ({"jobs": None, "template": "", "count": 1}, "template must be a mapping"),
        ({"jobs": None, "template": {"job_name": "{item}", "argv": ["true"]}, "over": [""]}, "job_name"),
        ({"jobs": None, "template": {"job_name": "{item:05d}", "argv": ["a"]}, "over": ["x"]}, "does not fit 'x'"),
        ({"success": "most"}, 'must be "all", a share'),
        ({"success": 2}, "asks for 2 finished jobs, but there are only 1"),
        ({"jobs": [{"argv": ["true"]}]}, "job_name"),
        ({"jobs": [{"job_name": "j", "argv": []}]}, "argv"),
        ({"jobs": [{"job_name": "j", "argv": ["true"], "walltime": 3}]}, "walltime"),
        ({"jobs": [{"job_name": "j", "argv": ["true"], "outputs": [{"lfn": "../x"}]}]}, "lfn"),
        ({"jobs": [{"job_name": "j", "argv": ["true"], "env": {"A B": "1"}}]}, "env"),
        ({"payload_owner": "a b"}, "owner"),
        ({"panda_queue": ""}, "queue"),
        ({"credential": {}}, "credential"),
        ({"scripts": {"../x": ""}}, "scripts"),
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
    assert context.pushed == {"panda_task_id": 7, "panda_job_id": 11}
    assert (sent["generation"], sent["start_over"]) == (0, "changed")


def test_what_an_earlier_try_has_ended_is_taken_without_waiting_again(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Answer(200, json.dumps({"task_id": 7, "first_panda_id": 11, "n_jobs": 1, "created": False}).encode())
    done = progress(finished=1)
    with http_stub(known, done, done, jobs(job_view()), Answer(200, b"log")) as stub:
        connect(monkeypatch, port=stub.port)
        assert operator().execute(Context())["finished"] == 1


def test_a_clear_is_told_from_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow raises ``max_tries`` when a person clears a task, and not when it tries again by itself."""
    with http_stub(REPLY) as stub:
        connect(monkeypatch, port=stub.port)
        for context in (Context(try_number=3, max_tries=2), Context(try_number=4, max_tries=2)):
            with pytest.raises(TaskDeferred):
                operator(rerun="all").execute(context)
    told = [json.loads(seen.body) for seen in stub.seen]
    assert [(each["generation"], each["start_over"]) for each in told] == [(2, "always")] * 2


def test_other_jobs_without_a_clear_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(Answer(409, json.dumps({"detail": "this key is known", "code": "conflict"}).encode())) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(ConflictError, match="clear the task: all of its jobs are then submitted anew"):
            operator().execute(Context())


def test_without_any_way_to_a_credential_both_reasons_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(
        Answer(409, json.dumps({"detail": "credential 3 ends too soon", "code": "credential"}).encode())
    ) as s:
        connect(monkeypatch, port=s.port)
        monkeypatch.setattr(MyProxyHook, "get_connection", classmethod(lambda _cls, name: connection(conn_id=name)))
        with pytest.raises(CredentialError, match=r"ends too soon; and none can be staged: .*owner_alice"):
            operator().execute(Context())


def test_the_result_holds_what_the_next_task_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(progress(finished=1), jobs(job_view()), Answer(200, b"hello from the payload")) as stub:
        connect(monkeypatch, port=stub.port)
        result = operator().execute_complete(Context(), {"panda_task_id": 7, "done": True, "note": ""})
    assert (result["finished"], result["first_panda_id"], result["unfinished"]) == (1, 11, [])
    assert result["outputs"] == [
        {"panda_id": 11, "lfn": "o", "source": "panda:11/o", "size": 1, "sha256": "0" * 64},
    ]


@pytest.mark.parametrize(
    ("blame", "who"),
    [("user", "its owner must act"), ("site", "administrator must act"), ("system", "the system, not the payload")],
)
def test_a_failure_says_first_what_failed_and_who_must_act(
    monkeypatch: pytest.MonkeyPatch, blame: str, who: str
) -> None:
    errors = [{"source": "pilot", "code": 1226, "diag": "no mapping", "blame": blame}]
    with http_stub(progress(finished=1, failed=1), jobs(job_view("failed", errors)), Answer(404)) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(PandaJobsFailed, match=who) as caught:
            operator().execute_complete(Context(), {"panda_task_id": 7, "done": True, "note": ""})
    said = str(caught.value)
    assert said.startswith("1 of 2 jobs did not finish (failed 1); all must finish. PandaID 11 (j) is failed: pilot")
    assert "pilot error 1226, no mapping. At fault is" in said
    assert "clear this task" in said.lower()
    assert caught.value.faults == {blame: 1}


@pytest.mark.parametrize("success", ["50%", 0.5, 1, "1"])
def test_enough_finished_jobs_are_a_success_with_partial_results(monkeypatch: pytest.MonkeyPatch, success: Any) -> None:
    answers = [progress(finished=1, failed=1), jobs(job_view("failed")), jobs(job_view(), job_view("failed"))]
    with http_stub(*answers, Answer(404)) as stub:
        connect(monkeypatch, port=stub.port)
        task = operator(success=success)
        result = task.execute_complete(Context(), {"panda_task_id": 7, "done": True, "note": ""})
    assert (result["n_jobs"], result["finished"], result["unfinished"]) == (2, 1, [11])


def test_a_wait_that_was_refused_fails_with_its_reason() -> None:
    with pytest.raises(PandaTaskLost, match="token was revoked"):
        operator().execute_complete(Context(), {"panda_task_id": 7, "done": False, "note": "the token was revoked"})


def test_one_job_takes_plain_output_names_and_needs() -> None:
    job = PandaJobOperator(
        task_id="peak", argv=["python3", "a.py"], outputs=["a.png", {"lfn": "b", "access": "vo"}], needs={"cores": 2},
        payload_owner="alice", credential=CREDENTIAL, panda_queue="DEMO",
    )  # fmt: skip
    (spec,) = job.specs()
    assert [(o.lfn, o.access) for o in spec.outputs] == [("a.png", "owner"), ("b", "vo")]
    assert spec.cores == 2


def test_outputs_of_another_task_are_inputs_as_they_are_and_numbers_are_words() -> None:
    output = {"panda_id": 7, "lfn": "a", "source": "panda:7/a", "size": 1, "sha256": "0" * 64}
    job = PandaJobOperator(
        task_id="t", argv=["run", 500, 1.5], inputs=[output], payload_owner="alice", panda_queue="DEMO"
    )
    (spec,) = job.specs()
    assert spec.argv == ["run", "500", "1.5"]
    assert (spec.inputs[0].source, spec.inputs[0].size) == ("panda:7/a", 1)


def test_a_kill_cancels_only_what_this_try_owns(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_stub(REPLY, progress(cancelled=1)) as stub:
        connect(monkeypatch, port=stub.port)
        subject = operator()
        with pytest.raises(TaskDeferred):
            subject.execute(Context())
        subject.on_kill()
    assert json.loads(stub.seen[1].body)["ti"]["ti_id"] == "u"
