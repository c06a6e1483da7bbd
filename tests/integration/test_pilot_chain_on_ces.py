"""The whole chain with its pilots on real computing elements: Slurm over SSH, and an ARC CE.

PostgreSQL, gateway over mutual TLS, MyProxy, submission, pilots (from their bundle), launcher and accounts are real. Of
Airflow there are the operators, triggers and Connections, as the example DAG has them; what is not there is its
scheduler.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from support.arc import running_arc
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID, Site, wait_for
from support.myproxy_server import ServerProcess
from support.node_processes import pilots_of, processes_of
from support.pilot_chain import (
    PILOTS,
    WRAPPER,
    Chain,
    Place,
    check_launchers_record,
    myproxy,
    put_bundle,
    running_chain,
    site,
)
from support.postgres import Database, postgres
from support.slurm import running_slurm
from support.sshd import running_sshd

from airpanda.__main__ import main
from airpanda.computing.elements import ListsTags, Load, PilotJobState, Purgeable, ReportsLoad
from airpanda.core.clock import utcnow
from airpanda.dispatcher.tokens import Issuer
from airpanda.hooks.address import Address
from airpanda.hooks.computing import ComputingElementHook
from airpanda.hooks.panda import PandaHook
from airpanda.operators.pilots import PilotSubmitOperator
from airpanda.triggers import pilots as triggers

__all__ = ["job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(600)]
OWNERS = {"alice": ALICE_UID, "bob": BOB_UID}


@contextmanager
def slurm_over_ssh(site: Site, directory: Path) -> Iterator[Place]:
    with running_slurm(site.node), running_sshd(site.node, directory) as sshd:
        ce = f'kind = "slurm"\nhost = "127.0.0.1"\nport = {sshd.port}\nconn_id = "c"\ndirectory = "{PILOTS}"\n'
        text = ce + f'known_hosts = "{sshd.known_hosts}"'
        yield Place(text, login=sshd.login, bundle=put_bundle(site, directory))


@contextmanager
def arc(site: Site, directory: Path) -> Iterator[Place]:
    with running_arc(site) as ce:
        text = f'kind = "arc"\nurl = "{ce.url}"\nconn_id = "c"\nca_dir = "{site.pki.ca_dir}"'
        proxy = site.proxy("pilot", hours=20)
        yield Place(text, credential=proxy, brings_proxy=True, bundle=put_bundle(site, directory))


@pytest.fixture(scope="module", name="place", params=[slurm_over_ssh, arc], ids=["slurm", "arc"])
def _place(site: Site, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with request.param(site, tmp_path_factory.mktemp("place")) as place:
        yield place


@pytest.fixture
def chain(site: Site, myproxy: ServerProcess, job_database: Database, tmp_path: Path, place: Place) -> Iterator[Chain]:
    with running_chain(site, myproxy, job_database, tmp_path, place) as chain:
        yield chain


@pytest.fixture
def token(chain: Chain, tmp_path: Path) -> Path:
    """Of a client that may send pilots."""
    file = tmp_path / "token"
    issuer, hour = Issuer(tmp_path / "signing.pem"), timedelta(hours=1)
    file.write_text(issuer.client_token("tests", ["*"], ["*"], hour, utcnow(), pilots=True).reveal())
    return file


@pytest.fixture
def airflow(chain: Chain, place: Place, token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Connections and the configuration of a site's Airflow, in the environment, where Airflow looks first."""
    (tmp_path / "pilot").symlink_to(WRAPPER.parent)
    monkeypatch.setenv("AIRFLOW__AIRPANDA__INCLUDE_DIR", str(tmp_path))
    pki = chain.site.pki
    certificate, key = map(str, pki.user("alice"))
    ca_dir, port = str(pki.ca_dir), chain.gateway.port
    for conn_id, connection in {
        "panda_default": {"host": "localhost", "port": port, "schema": "https", "password": token.read_text(),
                          "extra": {"ca_file": ca_dir}},
        "myproxy_default": {"host": "localhost", "port": chain.myproxy.port,
                            "extra": {"ca_dir": ca_dir, "retriever_dn": pki.dn("pilot")}},
        "owner_alice": {"extra": {"certificate_file": certificate, "key_file": key}},
        "c": ce_connection(place, tmp_path / "robot.pem"),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": "generic", **connection}))
    yield
    Address.of("panda_default", PandaHook.get_connection("panda_default")).close()


def ce_connection(place: Place, file: Path) -> dict[str, Any]:
    """What ``[ce] conn_id`` names."""
    if place.login is not None and place.login.private_key is not None:
        return {"login": place.login.user, "extra": {"private_key": place.login.private_key.reveal()}}
    assert place.credential is not None
    file.touch(0o600)
    file.write_bytes(place.credential.to_pem().reveal())
    return {"extra": {"proxy_file": str(file)}}


class Task:
    """One task instance, as worker and triggerer treat it."""

    def __init__(self, operator: Any) -> None:
        self.operator, self.xcom = operator, dict[str, Any]()
        names = {"dag_id": "d", "run_id": "r", "map_index": None, "try_number": 1, "max_tries": 0, "id": "u"}
        push = lambda key, value: self.xcom.update({key: value})  # noqa: E731
        ti = SimpleNamespace(**names, task_id=operator.task_id, task=operator, xcom_push=push)
        self.context = {"ti": ti}
        self.deferred: TaskDeferred | None = None

    def begin(self) -> Any:
        """Run until it waits, or to its end."""
        try:
            return self.operator.execute(self.context)
        except TaskDeferred as deferred:
            self.deferred = deferred
            return None

    def resume(self) -> Any:
        """Wait in the trigger for its event, and go on with that."""
        assert self.deferred is not None

        async def event(trigger: Any) -> Any:
            return (await anext(trigger.run())).payload

        payload = asyncio.run(asyncio.wait_for(event(self.deferred.trigger), 120))
        return getattr(self.operator, str(self.deferred.method_name))(self.context, payload)


def test_pilots_run_two_owners_jobs_as_two_accounts(chain: Chain) -> None:
    """Who runs is looked at from outside: by the host's process table, and by the launcher's own records."""
    job = {"argv": ["sh", "-c", "id -u > out.txt; sleep 2"], "outputs": [{"lfn": "out.txt"}]}
    before = len(chain.site.node.records())
    tasks = {uid: chain.submit(who, *[spec(f"{who}{i}", **job) for i in range(3)]) for who, uid in OWNERS.items()}
    handles = chain.send_pilots(2)
    element = chain.element()
    seen: set[int] = set()

    def seen_or_over() -> bool:
        seen.update(uid for uid in (ALICE_UID, BOB_UID, PILOT_UID) if chain.site.processes(uid))
        return len(seen) == 3 or all(status.state.is_final for status in element.status(handles).values())

    wait_for(seen_or_over, 120)
    assert seen == {ALICE_UID, BOB_UID, PILOT_UID}, chain.logs(handles)
    for uid, task in tasks.items():
        assert chain.wait(task["task_id"], 180) == {"finished": 3}, chain.logs(handles)
        for one in chain.jobs(task["task_id"]):
            (attempt,) = one["attempts"]
            assert (attempt["account_uid"], attempt["pilot_uid"]) == (uid, PILOT_UID)
            assert attempt["identity_switched"] is True
            check_launchers_record(chain, one, attempt)
            assert chain.http.get(f"/v1/file/{one['panda_id']}/out.txt").text == f"{uid}\n"
    assert chain.pilots_end(handles) == {PilotJobState.DONE}
    records = [record for record in chain.site.node.records()[before:] if record.get("identity_switched")]
    assert {ALICE_UID, BOB_UID} <= {record["uid"] for record in records}
    logs = chain.logs(handles)
    assert not [token for token in chain.tokens if token in logs]


def test_a_cancelled_pilot_ends_its_payload_and_cleans_up(chain: Chain) -> None:
    task = chain.submit("alice", spec("long", argv=["sleep", "87.5"], max_attempt=1))
    handles = chain.send_pilots(1)
    wait_for(lambda: chain.call("GET", f"/v1/task/{task['task_id']}/progress")["counts"].get("running"), 120)
    wait_for(lambda: chain.site.processes(ALICE_UID))
    element = chain.element()
    element.cancel(handles)
    wait_for(lambda: all(status.state.is_final for status in element.status(handles).values()), 90)
    assert isinstance(element, Purgeable)
    element.purge(handles)  # ARC's fork back-end leaves running what it cancelled; without its directory it ends
    wait_for(lambda: not processes_of(chain.site, ALICE_UID), 60)
    wait_for(lambda: not pilots_of(chain.site, PILOT_UID), 60)


@pytest.mark.usefixtures("airflow")
def test_the_example_dag_s_tasks_do_it_by_their_connections(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    """Proxy, job and pilots by the operators of ``hello_grid``; the payload runs as the proxy's owner."""
    dags = WRAPPER.parents[2] / "dags" / "examples"
    tasks = {task.task_id: task for task in DagBag(dag_folder=str(dags / "hello_grid.py")).dags["hello_grid"].tasks}
    credential = Task(tasks["stage_proxy"]).begin()
    tasks["hello"].credential = credential
    hello, pilots = Task(tasks["hello"]), Task(tasks["send_pilots"])
    pilots.operator.wait_for = 1
    hello.begin()
    pilots.begin()
    with ComputingElementHook("DEMO").element() as element:
        assert isinstance(element, ReportsLoad)
        assert element.load() in (Load(queued=1, running=0), Load(queued=0, running=1))
    assert pilots.resume()["n_pilots"] == 1
    result = hello.resume()
    assert result["finished"] == 1
    (job,) = chain.jobs(hello.xcom["panda_task_id"])
    (attempt,) = job["attempts"]
    assert (attempt["account_uid"], attempt["pilot_uid"]) == (ALICE_UID, PILOT_UID)
    assert attempt["identity_switched"] is True
    check_launchers_record(chain, job, attempt)
    assert f"uid={ALICE_UID}(" in capsys.readouterr().out, "the task's log has the payload's own words"
    (handle,) = (row[0] for row in chain.sql("SELECT ce_job_id FROM panda_pilot"))
    assert chain.pilots_end([handle]) == {PilotJobState.DONE}


@pytest.mark.usefixtures("airflow")
def test_pilots_that_never_register_fail_the_task_with_their_own_words(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pilot's standard output comes from the computing element into the task's log, and stays behind the link."""
    good = (tmp_path / "queues" / "DEMO.toml").read_text()
    broken = good.replace(f'code = "{chain.place.bundle}"', 'code = "/nonexistent/plugins"').replace(
        '"DEMO"', '"BROKEN"'
    )
    (tmp_path / "queues" / "BROKEN.toml").write_text(broken)
    pilots = Task(PilotSubmitOperator(task_id="pilots", panda_queue="BROKEN", n_pilots=1, wait_for=1))
    pilots.begin()
    monkeypatch.setattr(triggers, "LOOK_S", 1.0)  # no factory serves the queue: the wait itself finds out
    with pytest.raises(AirflowException, match="0 of 1 ever registered"):
        pilots.resume()
    assert "/nonexistent/plugins" in capsys.readouterr().out, "the task's log has the pilot's own words"
    kept = chain.http.get(f"/v1/batch/{pilots.xcom['pilot_batch_id']}/logs").text
    assert "/nonexistent/plugins" in kept


@pytest.mark.usefixtures("airflow")
def test_a_killed_wait_ends_its_pilots_at_the_site_unless_a_newer_try_has_them(chain: Chain) -> None:
    """As the triggerer does when a person clears the waiting task: the new try may have begun before."""
    operator = PilotSubmitOperator(task_id="pilots", panda_queue="DEMO", n_pilots=2, wait_for=2)
    first, second = Task(operator), Task(operator)
    second.context["ti"].id, second.context["ti"].try_number = "u2", 2
    triggers_of = []
    for task in (first, second):
        task.begin()
        assert task.deferred is not None
        triggers_of.append(task.deferred.trigger)
    handles = [row[0] for row in chain.sql("SELECT ce_job_id FROM panda_pilot")]
    assert len(handles) == 2, "the second try has adopted them"
    asyncio.run(triggers_of[0].on_kill())
    assert chain.sql("SELECT count(*) FROM panda_pilot WHERE cancel_asked_at IS NOT NULL") == [(0,)]
    element = chain.element()
    assert not any(status.state.is_final for status in element.status(handles).values())
    asyncio.run(triggers_of[1].on_kill())
    assert chain.sql("SELECT count(*) FROM panda_pilot WHERE cancel_asked_at IS NOT NULL") == [(2,)]
    wait_for(lambda: all(status.state.is_final for status in element.status(handles).values()), 90)
    assert isinstance(element, Purgeable)
    element.purge(handles)  # as in the test of a cancelled pilot
    wait_for(lambda: not pilots_of(chain.site, PILOT_UID), 60)


@pytest.mark.usefixtures("airflow")
def test_queues_test_shows_the_node_and_keeps_nothing(
    chain: Chain, token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--include", str(tmp_path), "--token-file", str(token), "--ca-file", str(chain.site.pki.ca_dir)]
    where += ["--dispatcher", f"https://localhost:{chain.gateway.port}"]
    assert main(["queues", "test", "DEMO", *where]) == 0, chain.gateway.log
    out = capsys.readouterr().out
    transcript = json.loads(out[out.index("\n{") : out.index("\n}") + 2])
    assert transcript["switch"]["works"] is True
    assert transcript["uid"] == PILOT_UID
    assert "the pilot works on node" in out
    assert "is gone" in out
    ((state, tag),) = chain.sql("SELECT p.state, tag FROM panda_pilot p JOIN panda_batch USING (batch_id)")
    assert state in ("cancelled", "finished")  # whose word comes first
    wait_for(lambda: not pilots_of(chain.site, PILOT_UID), 60)
    element = chain.element()
    assert isinstance(element, ListsTags)
    assert element.tagged(tag) == {}, "nothing of it waits or runs at the site"
