"""The job operators: what cannot succeed says so at once; failures explain themselves; retries change nothing twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from support.airflow_connection import connect, connection
from support.http_stub import Answer, http_stub
from support.task_context import Context

from airpanda.core.errors import ArchivedError, ConflictError, CredentialError
from airpanda.hooks.myproxy import MyProxyHook
from airpanda.operators.jobs import PandaJobOperator, PandaTaskOperator
from airpanda.operators.outcome import PandaJobsFailed, PandaTaskLost

CREDENTIAL = {"credential_id": 3, "owner": "alice"}
REPLY = Answer(200, json.dumps({"task_id": 7, "first_panda_id": 11, "n_jobs": 1, "created": True}).encode())


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
    return PandaTaskOperator(**{"task_id": "t"} | given | changes)


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
        ({"jobs": None, "template": {"job_name": "j-{n}", "argv": ["true"]}, "count": "x"}, "count must be a number"),
        ({"jobs": None, "template": {"job_name": "j-{n}", "argv": ["true"]}, "over": "abc"}, "over must be a list"),
        ({"jobs": None, "template": "", "count": 1}, "template must be a mapping"),
        ({"jobs": None, "template": {"job_name": "{item}", "argv": ["true"]}, "over": [""]}, "job_name"),
        ({"jobs": None, "template": {"job_name": "{item:05d}", "argv": ["a"]}, "over": ["x"]}, "does not fit 'x'"),
        ({"success": 2}, "asks for 2 finished jobs, but there are only 1"),
        ({"jobs": [{"argv": ["true"]}]}, "job_name"),
        ({"jobs": [{"job_name": "j", "argv": []}]}, "argv"),
        ({"jobs": [{"job_name": "j", "argv": ["true"], "walltime": 3}]}, "walltime"),
        ({"jobs": [{"job_name": "j", "argv": ["true"], "outputs": [{"lfn": "../x"}]}]}, "lfn"),
        ({"jobs": [{"job_name": "j", "argv": ["true"], "env": {"A B": "1"}}]}, "env"),
        ({"jobs": [7]}, r"jobs\[0\] must be a mapping, and is of type int"),
        ({"credential": {}}, "credential must be the output of a staging task, and is {}: its template has rendered"),
        ({"credential": {"credential_id": "x"}}, "output of a staging task, and is of type dict"),
        ({"scripts": {"../x": ""}}, "scripts"),
    ],
)
def test_what_can_never_succeed_fails_without_a_retry(change: dict[str, Any], named: str) -> None:
    with pytest.raises(AirflowFailException, match=named):
        operator(**change).execute(Context())


NOTHING = "{{ params.nothing }}"
ONE = {"job_name": "j", "argv": ["a"]}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"payload_owner": NOTHING}, "payload_owner is empty, and must name an owner"),
        ({"panda_queue": NOTHING}, "panda_queue is empty, and must name a queue"),
        ({"panda_queue": [NOTHING]}, "panda_queue is empty, and must name a queue"),
        ({"success": NOTHING}, 'success = .* must be "all", a share'),
        ({"credential": NOTHING}, "credential must be the output of a staging task, and is ''"),
        ({"jobs": NOTHING}, "jobs must be a list, and is '': its template has rendered to nothing"),
        ({"jobs": [{"job_name": NOTHING, "argv": ["true"]}]}, r"jobs\[0\]: job_name: "),
        ({"jobs": None, "template": ONE, "count": NOTHING}, "count must be a number, and is ''"),
        ({"jobs": None, "template": ONE, "over": NOTHING}, "over must be a list, and is ''"),
        ({"jobs": None, "template": ONE, "over": []}, "has 1 to 100000 jobs, and this one has 0"),
        ({"jobs": None, "template": NOTHING, "count": 1}, "template must be a mapping, and is ''"),
        ({"jobs": None, "template": {"job_name": "j", "argv": NOTHING}, "count": 1}, "job 0 of template: argv: "),
        ({"scripts": NOTHING, "jobs": None}, "give either jobs, a list, or template"),
    ],
)  # fmt: skip
def test_a_template_that_renders_to_nothing(change: dict[str, Any], says: str, native: bool) -> None:
    fails_when_rendered(operator(**change), says, native)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"argv": NOTHING}, "argv is '': its template has rendered to nothing"),
        ({"argv": []}, r"argv is \[\]: its template has rendered to nothing"),
        ({"argv": [NOTHING]}, "the job: argv: Value error, begins with an empty text, which is no program"),
        ({"inputs": NOTHING}, "inputs must be a list, and is ''"),
        ({"inputs": [NOTHING]}, "the job: inputs.0: "),
        ({"inputs": [{"lfn": "a", "source": NOTHING}]}, "the job: inputs.0.source: "),
        ({"outputs": NOTHING}, "outputs must be a list, and is ''"),
        ({"outputs": [NOTHING]}, "the job: outputs.0.lfn: "),
        ({"env": {"A": 1}}, "the job: env.A: "),
        ({"needs": {"cores": NOTHING}}, "the job: cores: "),
    ],
)
def test_a_template_of_one_job_that_renders_to_nothing(change: dict[str, Any], says: str, native: bool) -> None:
    given = {"argv": ["true"], "payload_owner": "alice", "credential": CREDENTIAL, "panda_queue": "DEMO"}
    fails_when_rendered(PandaJobOperator(task_id="t", **given | change), says, native)


def fails_when_rendered(subject: PandaTaskOperator, says: str, native: bool) -> None:
    dag = DAG("d", schedule=None, render_template_as_native_obj=native)
    dag.add_task(subject)
    subject.render_template_fields({"params": {"nothing": ""}})  # type: ignore[typeddict-item]
    with pytest.raises(AirflowFailException, match=says) as caught:
        subject.execute(Context())
    assert str(caught.value).startswith("task t: ")
    assert str(caught.value).endswith("; correct the DAG")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"payload_owner": "a b"}, "payload_owner 'a b' is no name of an owner"),
        ({"payload_owner": ""}, "payload_owner is empty"),
        ({"payload_owner": None}, "payload_owner is empty"),
        ({"panda_queue": ""}, "panda_queue is empty"),
        ({"panda_queue": []}, "panda_queue names no queue"),
        ({"panda_queue": ["DEMO", "x y"]}, "panda_queue 'x y' is no name of a queue"),
        ({"panda_queue": None}, "panda_queue is empty"),
        ({"success": "most"}, 'success = \'most\' must be "all", a share'),
        ({"rerun": "some"}, "must be \"unfinished\" or \"all\""),
        ({"outputs": ["../x"]}, r"outputs\[0\]: lfn: "),
        ({"outputs": [{"lfn": "payload.log"}]}, "is the name of a log that every job has"),
        ({"outputs": [{"lfn": "a", "acces": "vo"}]}, r"outputs\[0\]: acces: "),
        ({"outputs": ["a", {"lfn": "b", "destination": "ftp://x/"}]}, r"outputs\[1\]: destination: "),
        ({"inputs": [{"lfn": "a", "source": "panda:x/a"}]}, r"inputs\[0\]: source: "),
        ({"inputs": ["a"]}, r"inputs\[0\]: "),
    ],
)  # fmt: skip
def test_a_wrong_owner_queue_or_file_is_said_in_one_line_when_the_dag_is_read(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    given = {"task_id": "peak", "argv": ["true"], "payload_owner": "alice", "panda_queue": "DEMO"} | change
    file = tmp_path / "wrong.py"
    file.write_text(
        "from airflow.sdk import DAG\n"
        "from airpanda.operators.jobs import PandaJobOperator\n"
        f"with DAG('wrong', schedule=None):\n    PandaJobOperator(**{given!r})\n"
    )
    (told,) = DagBag(dag_folder=str(file)).import_errors.values()
    last = told.strip().splitlines()[-1]
    assert last.startswith("ValueError: task peak: ")
    assert re.search(says, last), last


def test_what_is_templated_or_comes_from_a_task_is_judged_later() -> None:
    with DAG("d", schedule=None):
        before = operator(task_id="before")
        PandaJobOperator(
            task_id="t", argv=before.output["argv"], inputs=before.output["outputs"], outputs=["{{ params.x }}"],
            payload_owner="{{ params.owner }}", panda_queue=["{{ params.queue }}"],
            credential=before.output,
        )  # fmt: skip


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


def test_the_same_jobs_in_the_archive_are_not_said_to_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    says = "panda task 7 is in the archive: run all of it again"
    with http_stub(Answer(409, json.dumps({"detail": says, "code": "archived"}).encode())) as stub:
        connect(monkeypatch, port=stub.port)
        with pytest.raises(ArchivedError) as refused:
            operator().execute(Context())
    assert str(refused.value) == says


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
