"""Files of the worker that jobs find in their sandbox: uploaded once, by operators and decorated functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from support.dispatcher import PILOT_DN, job_database, template_database
from support.launcher import wait_for
from support.postgres import postgres
from support.served import Served, served
from support.task_context import Context

from airpanda.core.errors import NotAuthorisedError, RequestError
from airpanda.decorators.panda_task import PandaFunctionOperator
from airpanda.dispatcher.verbs import Verb
from airpanda.hooks.panda import PandaHook
from airpanda.operators.jobs import PandaJobOperator, PandaTaskOperator

__all__ = ["job_database", "postgres", "served", "template_database"]
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:GitWildMatchPattern")]


@pytest.fixture(name="code")
def _code(tmp_path: Path) -> Path:
    code = tmp_path / "code.tar"
    code.write_bytes(b"a tar" * 1000)
    return code


def submit(operator: PandaTaskOperator, **context: Any) -> None:
    with pytest.raises(TaskDeferred):
        operator.execute(Context(task_id=operator.task_id, **context))


def blobs(served: Served) -> list[Path]:
    return [path for path in (served.world.settings.file_store / "sandbox").rglob("*") if path.is_file()]


def found_by_pilots(served: Served, lfn: str) -> list[bytes]:
    jobs = served.claim(PILOT_DN)
    pilot = served.pilot(PILOT_DN)
    return [served.do(pilot.get_input(job, lfn)).content for job in jobs]


def test_many_jobs_find_one_upload(served: Served, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a token of the verbs that this takes, and no other."""
    verbs = {Verb.READ, Verb.SUBMIT, Verb.FILES}
    monkeypatch.setenv("AIRFLOW_CONN_PANDA_DEFAULT", served.connection(password=served.token(verbs=verbs)))
    given = {"payload_owner": "alice", "panda_queue": "DEMO", "credential": served.credential(), "sandbox": [code]}
    template = {"job_name": "j-{n}", "argv": ["tar", "xf", "code.tar"]}
    submit(PandaTaskOperator(task_id="many", template=template, count=5, **given))
    assert found_by_pilots(served, "code.tar") == [code.read_bytes()] * 5
    (blob,) = blobs(served)
    monkeypatch.setattr(PandaHook, "_put", None)  # what is there is not sent again
    submit(PandaTaskOperator(task_id="many", template=template, count=5, **given))
    assert blobs(served) == [blob]
    assert len(served.states()) == 5
    monkeypatch.setenv("AIRFLOW_CONN_PANDA_DEFAULT", served.connection(password=served.token(verbs=[Verb.SUBMIT])))
    with pytest.raises(NotAuthorisedError, match="needs the verb files, and its token is for submit;"):
        PandaTaskOperator(task_id="many", template=template, count=5, **given).execute(Context(task_id="many"))


def test_one_job_and_a_function(served: Served, code: Path) -> None:
    def look() -> int:
        from pathlib import Path

        return Path("code.tar").stat().st_size

    given = {"payload_owner": "alice", "panda_queue": "DEMO", "credential": served.credential(), "sandbox": str(code)}
    submit(PandaJobOperator(task_id="one", argv=["true"], **given))
    submit(PandaFunctionOperator(task_id="function", python_callable=look, needs={}, **given))
    assert found_by_pilots(served, "code.tar") == [code.read_bytes()] * 2
    assert len(blobs(served)) == 1


def test_a_template_names_it(served: Served, code: Path) -> None:
    operator = PandaJobOperator(
        task_id="one", argv=["true"], payload_owner="alice", panda_queue="DEMO", credential=served.credential(),
        sandbox=["{{ params.folder }}/code.tar"],
    )  # fmt: skip
    operator.render_template_fields({"params": {"folder": str(code.parent)}})  # type: ignore[typeddict-item]
    submit(operator)
    assert found_by_pilots(served, "code.tar") == [code.read_bytes()]


def test_a_name_that_a_job_has_already(served: Served, code: Path) -> None:
    given = {"payload_owner": "alice", "panda_queue": "DEMO", "credential": served.credential(), "sandbox": code}
    for twice in ({"scripts": {"code.tar": ""}}, {"inputs": [{"lfn": "code.tar", "source": "file:///x"}]}):
        job = {"job_name": "j", "argv": ["true"]} | twice
        operator = PandaTaskOperator(task_id="t", jobs=[job], **given)
        with pytest.raises(AirflowFailException, match=r"job j has another input or script with the name code\.tar"):
            operator.execute(Context(task_id="t"))
    for one in (
        PandaJobOperator(task_id="t", argv=["true"], scripts={"code.tar": ""}, **given),
        PandaTaskOperator(task_id="t", jobs=[{"job_name": "j", "argv": ["true"]}], scripts={"code.tar": ""}, **given),
    ):
        with pytest.raises(AirflowFailException, match=r"sandbox: code\.tar is the name of a script, too"):
            one.execute(Context(task_id="t"))
    assert blobs(served) == []


def test_too_large_or_of_an_owner_that_the_token_does_not_open(
    served: Served, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = PandaJobOperator(task_id="t", argv=["true"], payload_owner="alice", panda_queue="DEMO", sandbox=code)
    with code.open("wb") as file:
        file.truncate(served.world.settings.max_sandbox_bytes + 1)
    with pytest.raises(RequestError, match=r"\[airpanda\] max_sandbox_bytes"):
        operator.execute(Context(task_id="t"))
    code.write_bytes(b"")
    monkeypatch.setenv("AIRFLOW_CONN_PANDA_DEFAULT", served.connection(password=served.token(owners=("bob",))))
    with pytest.raises(NotAuthorisedError, match="may not act for owner 'alice'"):
        operator.execute(Context(task_id="t"))
    assert blobs(served) == []
    assert served.states() == {}


def test_a_dispatcher_that_is_away_for_a_moment_is_waited_for(
    served: Served, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def up_again(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 1:
            served.up()

    monkeypatch.setattr("airpanda.hooks.panda.time.sleep", up_again)
    served.down()
    hook = PandaHook()
    view = hook.put_sandbox(code, "alice")
    assert hook.get_text(f"/v1/file/sandbox/alice/{view.sha256}") == code.read_text()
    assert pauses


@pytest.mark.parametrize("meanwhile", [b"", b"another tar" * 1000], ids=["shorter", "longer"])
def test_a_file_that_changes_while_it_is_sent(
    served: Served, code: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: bytes
) -> None:
    send = PandaHook._put

    def late(self: PandaHook, *given: Any) -> Any:
        code.write_bytes(meanwhile)
        return send(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(PandaHook, "_put", late)
        patch.setattr("airpanda.hooks.panda.time.sleep", pytest.fail)  # a repeat cannot help
        with pytest.raises(RequestError, match=r"code\.tar has changed while it was sent: send it again"):
            PandaHook().put_sandbox(code, "alice")
    wait_for(lambda: blobs(served) == [], 60)  # the dispatcher sees a moment later that the body broke off
