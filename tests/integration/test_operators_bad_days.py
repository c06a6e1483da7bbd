"""What goes wrong while jobs run: the dispatcher goes, the token is taken back, an output or a run is not what it was.

Operators and triggers against a real dispatcher and database. No test sleeps for long: long times are simulated.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import httpx
import jwt
import pytest
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import TaskDeferred
from support.canary import Canaries
from support.dispatcher import PILOT_DN, job_database, template_database
from support.postgres import postgres
from support.served import Served, served
from support.task_context import Context

from airpanda.core.clock import utcnow
from airpanda.core.errors import CredentialError, NotAuthorisedError, ServiceError
from airpanda.decorators.function import FunctionError
from airpanda.decorators.panda_task import PandaFunctionOperator
from airpanda.operators.jobs import MAX_RETURNS, PandaTaskOperator
from airpanda.operators.outcome import PandaJobsFailed, PandaTaskLost
from airpanda.operators.retries import PandaRetryPolicy
from airpanda.triggers.panda_task import PandaTaskTrigger

__all__ = ["job_database", "postgres", "served", "template_database"]
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:GitWildMatchPattern")]
KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI{}\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airpanda.triggers.settling.SETTLE_S", 0.0)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of the synchronous hook."""
    monkeypatch.setattr("airpanda.hooks.panda._pauses", lambda _call: [0.0, None])


def task(served: Served, n: int = 1, **changes: Any) -> PandaTaskOperator:
    jobs = [{"job_name": f"j{i}", "argv": ["true"], "outputs": [{"lfn": "o"}], "max_attempt": 1} for i in range(n)]
    given = {
        "task_id": "t", "jobs": jobs, "payload_owner": "alice", "panda_queue": "DEMO",
        "credential": served.credential(), "poll": timedelta(seconds=0.02),
    }  # fmt: skip
    return PandaTaskOperator(**given | changes)


def deferred(operator: PandaTaskOperator, context: Context | None = None) -> PandaTaskTrigger:
    """Submitted; what it waits by, as the triggerer has it."""
    with pytest.raises(TaskDeferred) as caught:
        operator.execute(context or Context())
    return restored(caught.value)


def restored(deferral: TaskDeferred) -> PandaTaskTrigger:
    _, arguments = deferral.trigger.serialize()
    return PandaTaskTrigger(**arguments)


def event_of(trigger: PandaTaskTrigger, limit_s: float = 60) -> dict[str, Any]:
    async def first() -> Any:
        async with asyncio.timeout(limit_s):
            return [event.payload async for event in trigger.run()]

    (event,) = asyncio.run(first())
    return dict(event)


# --- the dispatcher is away ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pause")
def test_down_at_submission_is_tried_again_later_and_doubles_nothing(served: Served) -> None:
    subject = task(served)
    served.down()
    with pytest.raises(ServiceError) as caught:
        subject.execute(Context())
    assert str(caught.value) == (
        "the dispatcher of Connection 'panda_default' cannot be reached (ConnectError); its operator must look whether"
        " it runs"
    )
    decision = PandaRetryPolicy().evaluate(caught.value, 1, 3)
    assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, timedelta(minutes=1))
    served.up()
    assert served.states() == {}
    deferred(subject, Context(try_number=2, max_tries=3, retries=3, ti_id="u2"))
    assert list(served.states().values()) == ["activated"]


@pytest.mark.usefixtures("no_pause")
def test_an_answer_that_is_lost_after_the_submission_doubles_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, real, lost = task(served, 3), httpx.Client.request, []

    def lose(client: httpx.Client, **words: Any) -> httpx.Response:
        response = real(client, **words)
        if words["url"] == "v1/job/submit" and not lost:
            lost.append(response)
            raise httpx.ReadError("the connection broke")
        return response

    monkeypatch.setattr(httpx.Client, "request", lose)
    trigger = deferred(subject)
    assert (len(lost), len(served.states())) == (1, 3)
    assert [row["n_jobs"] for row in served.sql("SELECT n_jobs FROM panda_task")] == [3]
    served.finish_all()
    assert event_of(trigger)["done"]


@pytest.mark.usefixtures("no_pause")
def test_down_when_the_task_resumes_is_waited_out_without_a_slot(served: Served) -> None:
    subject = task(served)
    trigger = deferred(subject)
    served.finish_all()
    event = event_of(trigger)
    served.down()
    with pytest.raises(TaskDeferred) as again:
        subject.execute_complete(Context(), event)
    served.up()
    event = event_of(restored(again.value))
    assert (event["done"], event["returns"]) == (True, 1)
    assert subject.execute_complete(Context(), event)["finished"] == 1
    served.down()
    with pytest.raises(ServiceError):
        subject.execute_complete(Context(), event | {"returns": MAX_RETURNS})


def test_down_for_an_hour_while_it_waits(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = task(served, poll=timedelta(seconds=2))
    trigger = deferred(subject)
    served.finish_all()
    served.down()
    pauses: list[float] = []
    real_sleep = asyncio.sleep

    async def run() -> Any:
        loop = asyncio.get_running_loop()

        async def sleep(seconds: float) -> None:
            if asyncio.get_running_loop() is not loop:  # the dispatcher's
                await real_sleep(seconds)
                return
            pauses.append(seconds)
            if sum(pauses) > 3600 and served._server is None:
                await asyncio.to_thread(served.up)
            await real_sleep(0)

        monkeypatch.setattr(asyncio, "sleep", sleep)
        return [event.payload async for event in trigger.run()]

    (event,) = asyncio.run(run())
    monkeypatch.setattr(asyncio, "sleep", real_sleep)
    assert event["done"]
    assert sum(pauses) > 3600
    assert len(pauses) < 75, "once a minute, after a short beginning"
    assert subject.execute_complete(Context(), event)["finished"] == 1


# --- the token -----------------------------------------------------------------------------------------------


def revoke(served: Served, token: str) -> None:
    number = jwt.decode(token, options={"verify_signature": False})["jti"]
    expires = utcnow() + timedelta(hours=1)
    revocation = served.world.services.revocations.revoke(
        "token", number, reason="lost", by="tests", expires_at=expires
    )
    served.do(revocation)


def with_token(served: Served, monkeypatch: pytest.MonkeyPatch) -> str:
    token = served.token()
    monkeypatch.setenv("AIRFLOW_CONN_PANDA_DEFAULT", served.connection(password=token))
    return token


REVOKED = "the dispatcher does not know this token: the bearer token has been revoked: get a fresh one"


def test_a_token_revoked_while_jobs_run(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    token = with_token(served, monkeypatch)
    subject = task(served)
    trigger = deferred(subject)
    (job,) = served.claim(PILOT_DN)
    served.run(PILOT_DN, job)
    revoke(served, token)
    event = event_of(trigger)
    assert (event["done"], event["note"]) == (False, REVOKED)
    with pytest.raises(PandaTaskLost, match=f"could not be followed: {REVOKED}") as lost:
        subject.execute_complete(Context(), event)
    assert PandaRetryPolicy().evaluate(lost.value, 1, 3).action is RetryAction.FAIL
    assert list(served.states().values()) == ["running"], "the jobs go on"

    with_token(served, monkeypatch)
    trigger = deferred(subject, Context(try_number=2, max_tries=1, ti_id="u2"))
    served.finish(PILOT_DN, job)
    assert subject.execute_complete(Context(), event_of(trigger))["finished"] == 1


@pytest.mark.parametrize("when", ["submission", "resumption"])
def test_a_token_revoked_before_the_task_speaks(served: Served, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    token = with_token(served, monkeypatch)
    subject = task(served)
    if when == "resumption":
        trigger = deferred(subject)
        served.finish_all()
        event = event_of(trigger)
    revoke(served, token)
    with pytest.raises(NotAuthorisedError) as refused:
        subject.execute_complete(Context(), event) if when == "resumption" else subject.execute(Context())
    assert str(refused.value) == REVOKED
    assert PandaRetryPolicy().evaluate(refused.value, 1, 3).action is RetryAction.FAIL


# --- the clock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_a_clock_that_jumps_while_it_waits_changes_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    monkeypatch.setattr("airpanda.triggers.settling.SETTLE_S", 0.3)
    trigger = deferred(task(served))
    real, began, jumps = time.time, time.monotonic(), iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + jump_s * (next(jumps) % 2))

    async def run() -> Any:
        waiting = asyncio.create_task(anext(aiter(trigger.run())))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(served.finish_all)
        return await asyncio.wait_for(waiting, 60)

    assert asyncio.run(run()).payload["done"]
    assert time.monotonic() - began >= 0.3


# --- runs and their keys -------------------------------------------------------------------------------------


def test_two_runs_of_one_dag_never_share_jobs(served: Served) -> None:
    subject = task(served)
    triggers = [deferred(subject, Context(run_id=run, ti_id=run)) for run in ("one", "two", "one/t", "One")]
    assert len({trigger.panda_task_id for trigger in triggers}) == 4
    assert len(served.states()) == 4


def test_a_run_that_was_deleted_and_made_anew_gets_jobs_of_its_own(served: Served) -> None:
    subject = task(served)
    old = deferred(subject, Context(try_number=2, ti_id="old-2"))
    served.finish_all()
    new = deferred(subject, Context(ti_id="new-1"))
    assert new.panda_task_id != old.panda_task_id
    assert sorted(served.states().values()) == ["activated", "finished"]
    assert deferred(subject, Context(ti_id="new-1")).panda_task_id == new.panda_task_id, "a repeat changes nothing"
    later = Context(try_number=2, max_tries=1, ti_id="new-2")
    assert deferred(subject, later).panda_task_id == new.panda_task_id


def test_a_run_made_anew_while_jobs_of_the_deleted_one_run_doubles_nothing(served: Served) -> None:
    subject = task(served, 2)
    old = deferred(subject, Context(try_number=2, max_tries=1, ti_id="old-2"))
    (job,) = served.claim(PILOT_DN, n=1)
    served.run(PILOT_DN, job)
    new = deferred(subject, Context(ti_id="new-1"))
    assert new.panda_task_id == old.panda_task_id
    assert sorted(served.states().values()) == ["activated", "running"]
    changed = task(served, 2, success="1", jobs=[{"job_name": "other", "argv": ["true"]}] * 2)
    cleared = deferred(changed, Context(try_number=2, max_tries=1, ti_id="new-2"))
    assert cleared.panda_task_id != new.panda_task_id, "a clear in the new run counts from its own first try"


def test_a_credential_from_another_runs_xcom(served: Served) -> None:
    credential = served.credential(scope="task")
    deferred(task(served, credential=credential), Context(run_id="yesterday", ti_id="y"))
    with pytest.raises(CredentialError) as refused:
        task(served, credential=credential).execute(Context(run_id="today"))
    assert str(refused.value).startswith(
        f"credential {credential['credential_id']} serves another panda task, and its scope is task: stage one for this"
        " task, or one of scope user; and none can be staged: Airflow has no Connection 'owner_alice'"
    )
    assert len(served.states()) == 1


# --- outputs and functions -----------------------------------------------------------------------------------


def test_an_output_that_the_payload_has_not_left(served: Served) -> None:
    subject = task(served, 2)
    trigger = deferred(subject)
    good, bad = served.claim(PILOT_DN)
    served.finish(PILOT_DN, good)
    missing = {"source": "pilot", "code": 1165, "diag": "a declared output is missing: o", "blame": "user"}
    served.fail(PILOT_DN, bad, error=missing, log=b"forgot to write it")
    with pytest.raises(PandaJobsFailed) as failed:
        subject.execute_complete(Context(), event_of(trigger))
    said = str(failed.value)
    assert said.startswith("1 of 2 jobs did not finish (failed 1); all must finish. ")
    assert "pilot error 1165, a declared output is missing: o. At fault is the payload or its description" in said
    assert PandaRetryPolicy().evaluate(failed.value, 1, 3).action is RetryAction.FAIL


def add(n: int) -> int:
    return n + 1


def function(served: Served) -> PandaFunctionOperator:
    return PandaFunctionOperator(
        task_id="t", python_callable=add, op_args=[1], needs={"max_attempt": 1}, payload_owner="alice",
        panda_queue="DEMO", credential=served.credential(), poll=timedelta(seconds=0.02),
    )  # fmt: skip


@pytest.mark.parametrize("how", ["on no record", "lost"])
def test_a_function_whose_result_is_not_there(served: Served, how: str) -> None:
    subject = function(served)
    trigger = deferred(subject)
    (job,) = served.claim(PILOT_DN)
    served.finish(PILOT_DN, job, contents={"panda_result.json": b"2"})
    if how == "lost":
        for path in served.world.settings.file_store.glob("*/*"):
            path.unlink()
    else:
        served.do(served.world.sql("DELETE FROM panda_file"))
    with pytest.raises(FunctionError, match="but its result is not there: ") as caught:
        subject.execute_complete(Context(), event_of(trigger))
    assert str(caught.value).endswith('To run it again, give the task rerun="all" and clear it')
    assert PandaRetryPolicy().evaluate(caught.value, 1, 3).action is RetryAction.FAIL


@pytest.mark.parametrize("end", ["finished", "failed"])
def test_a_function_that_prints_a_key(
    served: Served, canaries: Canaries, capfd: pytest.CaptureFixture[str], end: str
) -> None:
    """The canary fails the test by itself wherever it is shown: log, error, XCom."""
    key = KEY.format(canaries.plant("payload key"))
    one_line = " ".join(key.split())
    log = f"before\n{key}after\npanda_task: the function add raised ValueError: {one_line}\n".encode()
    subject = function(served)
    trigger = deferred(subject)
    (job,) = served.claim(PILOT_DN)
    if end == "finished":
        served.finish(PILOT_DN, job, log=log, contents={"panda_result.json": b"2"})
        assert subject.execute_complete(Context(), event_of(trigger)) == 2
    else:
        served.fail(PILOT_DN, job, log=log)
        with pytest.raises(PandaJobsFailed, match=r"raised ValueError: \[private key removed\]"):
            subject.execute_complete(Context(), event_of(trigger))
    shown = "".join(capfd.readouterr())
    assert "[private key removed]" in shown
    assert "before" in shown
    assert not canaries.shown_in(shown)


def test_a_function_that_returns_a_key_gives_nothing_into_xcom(served: Served, canaries: Canaries) -> None:
    key = KEY.format(canaries.plant("returned key")).replace("\n", "\\n")
    subject, context = function(served), Context()
    trigger = deferred(subject)
    served.finish_all(contents={"panda_result.json": f'{{"proxy": "{key}"}}'.encode()})
    with pytest.raises(FunctionError, match="holds a private key: its owner must withdraw that key") as caught:
        subject.execute_complete(context, event_of(trigger))
    assert not canaries.shown_in(str(caught.value) + repr(context.pushed))
