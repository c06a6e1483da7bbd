"""What a DAG asks for and cannot have: refused when the task starts, in one line that says who must do what.

Operators against a real dispatcher and database, with Connections as Airflow finds them.
"""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import TaskDeferred
from support.dispatcher import ALICE_DN, BOB_DN, PILOT_DN, Queue, Slot, job_database, template_database
from support.postgres import postgres
from support.served import CLIENT, Served, served
from support.task_context import Context

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import (
    AirpandaError,
    BannedError,
    CredentialError,
    NotAuthorisedError,
    NotFoundError,
    QueueOfflineError,
    RequestError,
)
from airpanda.jobs import inputs as inputs_module
from airpanda.operators.jobs import PandaJobOperator, PandaTaskOperator
from airpanda.operators.retries import PandaRetryPolicy

__all__ = ["job_database", "postgres", "served", "template_database"]
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:GitWildMatchPattern")]


def job(**changes: Any) -> PandaJobOperator:
    given = {"payload_owner": "alice", "panda_queue": "DEMO", "argv": ["true"], "task_id": "peak"}
    return PandaJobOperator(**given | changes)


def refused(operator: PandaTaskOperator, kind: type[AirpandaError], served: Served) -> str:
    """The one line with which it fails for good; nothing is stored."""
    before = served.states()
    with pytest.raises(kind) as caught:
        operator.execute(Context(task_id=operator.task_id))
    assert type(caught.value) is kind
    said = str(caught.value)
    assert "\n" not in said
    assert PandaRetryPolicy().evaluate(caught.value, 1, 3).action is RetryAction.FAIL
    assert served.states() == before
    return said


def staged_for_another_client(served: Served, **consent: Any) -> dict[str, Any]:
    credential = served.do(served.world.credential(consent=None))
    if consent:
        grant = {"client": CLIENT, "queues": ["*"], "until": utcnow() + timedelta(hours=1)} | consent
        served.do(_consent(served, grant))
    return {"credential_id": credential["credential_id"], "owner": "alice"}


async def _consent(served: Served, grant: dict[str, Any]) -> None:
    from airpanda.messages import ConsentGrant

    wanted = ConsentGrant(**grant)
    await served.world.services.consents.give(wanted, owner_dn=ALICE_DN, now=utcnow() - timedelta(days=1))


@pytest.mark.parametrize("consent", [{}, {"queues": ["OTHER"]}, {"until": utcnow() - timedelta(seconds=1)}])
def test_an_owner_who_has_not_consented(served: Served, consent: dict[str, Any]) -> None:
    credential = staged_for_another_client(served, **consent)
    said = refused(job(credential=credential), CredentialError, served)
    assert f"{ALICE_DN} has not consented to client 'airflow' using credential" in said
    assert "the owner must consent (airpanda proxy consent)" in said
    assert "none can be staged: Airflow has no Connection 'owner_alice'" in said


def test_an_owner_without_staged_proxy_and_without_connection(served: Served) -> None:
    said = refused(job(), CredentialError, served)
    assert said == (
        "no credential is given; and none can be staged: Airflow has no Connection 'owner_alice', which says where the"
        " certificate or proxy of alice is: whoever runs Airflow must make it, as docs/operations.md tells"
    )


def test_an_owner_whose_connection_names_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OWNER_ALICE", json.dumps({"conn_type": "generic", "extra": {"key_file": "/k"}}))
    said = refused(job(), CredentialError, served)
    assert "'owner_alice' must name certificate_file and key_file, or proxy_file" in said


def test_a_proxy_that_ends_before_the_jobs_can(served: Served) -> None:
    credential = served.credential(expires_at=to_wire(utcnow() + timedelta(minutes=5)))
    said = refused(job(credential=credential, needs={"walltime_s": 600}), CredentialError, served)
    assert "before the job's time limit of 600 s: stage one that lives longer; and none can be staged" in said


@pytest.mark.parametrize("owner", ["bob", "nobody"])
def test_a_credential_of_somebody_else_or_of_nobody(served: Served, owner: str) -> None:
    credential = served.credential("bob") if owner == "bob" else {"credential_id": 999}
    said = refused(job(credential=credential), NotFoundError, served)
    assert said == (
        f"there is no credential {credential['credential_id']} of owner 'alice': name one that was staged for this"
        " owner"
    )


def test_a_banned_owner_stages_nothing_more(served: Served) -> None:
    credential = served.credential()
    served.do(served.world.good("POST", "/v1/bans", {"dn": ALICE_DN, "reason": "key on a stolen laptop"}))
    said = refused(job(credential=credential), BannedError, served)
    assert said == f"{ALICE_DN} is banned (key on a stolen laptop): ask the operators of this service"


@pytest.mark.parametrize(
    ("queue", "says"),
    [
        ("NOWHERE", "there is no queue 'NOWHERE'"),
        (["DEMO", "NOWHERE"], "there is no queue 'NOWHERE'"),
        ("SMALL", "job peak asks for cores = 2, but a pilot of queue SMALL has 1 to give"),
        ("SHUT", "queue SHUT is offline"),
        (["SHUT", "SMALL"], "no queue fits: queue SHUT is offline"),
    ],
)
def test_a_queue_that_cannot_take_the_job(served: Served, queue: Any, says: str) -> None:
    served.world.queues["SHUT"] = Queue("SHUT", is_online=False, slot=Slot(cores=1))
    served.world.queues["SMALL"] = Queue("SMALL", slot=Slot(cores=1))
    said = refused(job(credential=served.credential(), panda_queue=queue, needs={"cores": 2}), RequestError, served)
    assert said.startswith(says)


@pytest.mark.parametrize("queue", ["SHUT", ["SHUT", "SMALL"]])
def test_a_queue_that_is_offline_is_waited_for_by_retries(served: Served, queue: Any) -> None:
    served.world.queues["SHUT"] = Queue("SHUT", is_online=False)
    served.world.queues["SMALL"] = Queue("SMALL", slot=Slot(cores=1))
    with pytest.raises(QueueOfflineError) as caught:
        job(credential=served.credential(), panda_queue=queue, needs={"cores": 2}).execute(Context())
    assert "queue SHUT is offline: wait until its site puts it online, or name another one" in str(caught.value)
    decision = PandaRetryPolicy().evaluate(caught.value, 1, 3)
    assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, timedelta(minutes=10))
    assert served.states() == {}


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ({"owners": ("bob",)}, "client airflow may not act for owner 'alice'"),
        ({"queues": ("OTHER",)}, "client airflow may not use queue 'DEMO'"),
    ],
)
def test_an_owner_or_queue_that_the_connections_token_does_not_open(
    served: Served, monkeypatch: pytest.MonkeyPatch, token: dict[str, Any], says: str
) -> None:
    credential = served.credential()
    monkeypatch.setenv("AIRFLOW_CONN_PANDA_DEFAULT", served.connection(password=served.token(**token)))
    assert says in refused(job(credential=credential), NotAuthorisedError, served)


def finished(served: Served, owner: str = "alice", access: str = "owner") -> dict[str, Any]:
    """An output of a job that has finished, as its task's XCom has it."""
    dn = {"alice": ALICE_DN, "bob": BOB_DN}[owner]
    credential = served.credential(owner, owner_dn=dn)
    first = job(
        credential=credential, payload_owner=owner, task_id="before", outputs=[{"lfn": "zmumu.npz", "access": access}]
    )
    with pytest.raises(TaskDeferred) as deferred:
        first.execute(Context(task_id="before", run_id=owner))
    served.finish_all()
    event = {"panda_task_id": deferred.value.trigger.panda_task_id, "done": True, "note": ""}
    (output,) = first.execute_complete(Context(), event)["outputs"]
    return dict(output)


def absent(source: str, panda_id: int) -> str:
    return (
        f"job peak: its input {source} is not there for {ALICE_DN}: job {panda_id} has not finished with such an"
        " output, or is another owner's who does not share it; name one that has, or have its owner submit it with"
        " access vo, to a VO of both"
    )


def test_an_input_that_no_job_has_made(served: Served) -> None:
    good = finished(served)
    source = f"panda:{good['panda_id']}/zmumu.root"
    inputs = [good, {"lfn": "b", "source": source}]
    said = refused(job(credential=served.credential(), inputs=inputs), RequestError, served)
    assert said == absent(source, good["panda_id"])


def test_an_input_of_a_job_that_runs_or_never_was(served: Served) -> None:
    credential = served.credential()
    with pytest.raises(TaskDeferred):
        job(credential=credential, outputs=["a"], task_id="before").execute(Context(task_id="before"))
    (running,) = served.claim(PILOT_DN)
    for number in (running["panda_id"], 10**17):
        wanted = job(credential=credential, inputs=[{"lfn": "a", "source": f"panda:{number}/a"}])
        assert refused(wanted, RequestError, served) == absent(f"panda:{number}/a", number)


def test_an_input_of_another_owner(served: Served) -> None:
    others = finished(served, "bob")
    said = refused(job(credential=served.credential(), inputs=[others]), RequestError, served)
    assert said == absent(others["source"], others["panda_id"]), "whether it exists is not told"


def test_inputs_are_asked_for_in_parts(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_module, "AT_ONCE", 1)
    good = finished(served)
    numbers = [good["panda_id"] + n for n in (10, 11)]
    wanted = [good, *({"lfn": f"i{n}", "source": f"panda:{n}/a"} for n in numbers)]
    said = refused(job(credential=served.credential(), inputs=wanted), RequestError, served)
    assert said == absent(f"panda:{numbers[0]}/a", numbers[0])


def test_an_input_that_is_there_is_taken_and_a_repeat_asks_no_more(served: Served) -> None:
    inputs = [finished(served), finished(served, "bob", "vo") | {"lfn": "of-the-vo"}]
    subject = job(credential=served.credential(), inputs=inputs)
    for _ in range(2):
        with pytest.raises(TaskDeferred):
            subject.execute(Context(task_id="peak"))
        served.sql("UPDATE panda_file SET lfn = 'gone'")


def test_a_refusal_shows_no_secret(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = refused(job(), CredentialError, served)
    assert json.loads(served.connection())["password"] not in said + caplog.text
