"""The pilot factory at work: the real dispatcher, PostgreSQL and local computing element; pilots that are scripts.

The scripts register as a pilot does, by the token in ``pilot.json``, unless the test wants them to be eaten.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import TaskDeferred
from support.airflow_connection import connect
from support.dispatcher import ALICE_DN, PILOT_DN, job_database, spec, template_database, ti
from support.factory_rig import FactoryRig, as_toml, factory_rig
from support.gateway import good
from support.pki import Pki
from support.postgres import Database, postgres

from airpanda.__main__ import main
from airpanda.computing.elements import (
    CEUnavailableError,
    ComputingElement,
    Handle,
    InvalidDescriptionError,
    PilotBatch,
    PilotJobState,
    Status,
    SubmitUncertainError,
    ThrottledError,
    make_element,
)
from airpanda.computing.local import LocalElement
from airpanda.computing.queues import PandaQueue, parse_queue
from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import ConfigurationError, ConflictError, ServiceError
from airpanda.core.secret import Secret
from airpanda.hooks import calls, submission
from airpanda.hooks import factory as hooks_factory
from airpanda.hooks.factory import Factory
from airpanda.hooks.probing import QueueTest
from airpanda.messages import BatchIntent, BatchRecord, FactoryBegin, FactoryView
from airpanda.operators import factory as operators
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = pytest.mark.integration
DAGS = Path(__file__).resolve().parents[2] / "dags"
QUEUE = """
[queue]
name = "TEST"
identity_policy = "NEVER"
[ce]
kind = "local"
directory = "{directory}"
account = "{account}"
[pilot]
code = "/nowhere"
dispatcher_url = "https://localhost:1"
ca_dir = "/nowhere"
proxy = "{proxy}"
[factory]
enabled = true
rpc_per_minute = 6000
first_batch = {first_batch}
"""
REGISTRATION = {
    "owner": "alice",
    "owner_dn": ALICE_DN,
    "server": "localhost:7512",
    "username": "alice",
    "cred_name": "0" * 32,
    "passphrase": "of-nobody",
    "retriever_dn": PILOT_DN,
    "expires_at": to_wire(utcnow() + timedelta(hours=12)),
    "consent": {"queues": ["*"]},
}
TRACED = frozenset({hooks_factory.__file__, submission.__file__})
SLEEPS = "exec sleep 300\n"
EATEN = "echo no software here; exit 1\n"


@dataclass
class Clock:
    """Real time, moved on where a test does not want to wait."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        return utcnow() + self.ahead


@dataclass
class Site:
    rig: FactoryRig
    queue: PandaQueue
    wrapper: Path
    clock: Clock = field(default_factory=Clock)
    submissions: list[int] = field(default_factory=list)
    credential_of: Any = None
    broken: bool = False
    busy_s: float = 0.0
    credential_ends: datetime | None = None
    all_queued: bool = False
    says: PilotJobState | None = None
    on_find: Callable[[], object] | None = None
    max_handles: int = 0
    purged: list[Handle] = field(default_factory=list)
    task: int = 0

    @property
    def factory(self) -> Factory:
        return Factory(
            self._send,
            self._element_of,
            self.wrapper,
            "a test",
            credential_of=self.credential_of,
            now=self.clock.now,
        )

    def _send(self, call: calls.Call[Any]) -> Any:
        """The queue's file says what ``queue`` is; a gateway reads files twice a minute only."""
        answer = self.rig.send(call)
        return answer.model_copy(update={"queue": self.queue.to_wire()}) if isinstance(answer, FactoryView) else answer

    @property
    def element(self) -> LocalElement:
        return LocalElement(self.queue, self.wrapper.read_text(), grace_s=0.0)

    def _element_of(self, queue: PandaQueue, wrapper: Path) -> ComputingElement:
        element = make_element(queue, wrapper)
        whole = element.submit

        def counted(batch: PilotBatch) -> Any:
            if self.broken:
                raise CEUnavailableError("the site does not answer")
            if self.busy_s:
                raise ThrottledError("come back later", retry_after_s=self.busy_s)
            self.submissions.append(len(batch.tokens))
            return whole(batch)

        element.submit = counted  # type: ignore[method-assign]
        self._bound(element)
        if self.on_find is not None:
            then, self.on_find = self.on_find, None
            find = element.find

            def found_before(tag: str) -> Any:
                element.find = find  # type: ignore[method-assign]
                found = find(tag)
                then()
                return found

            element.find = found_before  # type: ignore[method-assign]
        if self.says is not None:
            said = Status(self.says)
            element.status = lambda handles: dict.fromkeys(handles, said)  # type: ignore[method-assign]
        if self.credential_ends is not None:
            element.credential_ends = lambda: self.credential_ends  # type: ignore[attr-defined]
        if self.all_queued:
            element.status = lambda handles: {  # type: ignore[method-assign]
                handle: Status(PilotJobState.QUEUED) if status.state is PilotJobState.RUNNING else status
                for handle, status in self.element.status(handles).items()
            }
        return element

    def _bound(self, element: Any) -> None:
        """No call carries more than ``max_handles``, as elements demand; what is purged is noted."""

        def bound(name: str) -> None:
            whole = getattr(element, name)

            def bounded(handles: list[Handle]) -> Any:
                if len(handles) > element.limits.max_handles:
                    raise InvalidDescriptionError(f"{len(handles)} handles in one {name}")
                if name == "purge":
                    self.purged += handles
                return whole(handles)

            setattr(element, name, bounded)

        if self.max_handles:
            element.limits = replace(element.limits, max_handles=self.max_handles)
        for name in ("status", "cancel", "purge"):
            bound(name)

    def cycle(self) -> list[str]:
        return self.factory.cycle("TEST")

    def jobs(self, n: int) -> None:
        """Waiting jobs."""
        with self.rig.gateway.client() as http:
            credential = good(http.post("/v1/creds/register", json=REGISTRATION))
            wanted = {"task_key": "k", "task_name": "t", "owner": "alice", "queue": "TEST", "ti": ti()}
            wanted["credential_id"] = credential["credential_id"]
            wanted["jobs"] = [spec(f"j{number}", memory_mib=100, disk_mib=100) for number in range(n)]
            self.task = good(http.post("/v1/job/submit", json=wanted))["task_id"]

    def no_jobs(self) -> None:
        with self.rig.gateway.client() as http:
            good(http.post(f"/v1/task/{self.task}/kill", json={"reason": "no need"}))

    def register(self) -> None:
        """As the pilots of this element do, one after the other, when they have started."""
        for row in self.rig.sql("SELECT pilot_id FROM panda_pilot WHERE state = 'submitted'"):
            token = self.rig.gateway.issuer.pilot_token(row["pilot_id"], "TEST", timedelta(hours=1), utcnow()).reveal()
            with self.rig.gateway.http(token=token) as http:
                told = {"status": "started", "node": "wn1"}
                assert http.post("/v1/pilot/update_worker_status", json=told).is_success

    def running(self) -> list[Handle]:
        return [handle for handles in self.element.tagged("").values() for handle in handles]

    def end_all(self) -> None:
        deadline = time.monotonic() + 90
        while (handles := self.running()) and time.monotonic() < deadline:
            self.element.cancel(handles)
            time.sleep(0.05)

    def until(self, look: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not look():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def site(job_database: Database, tmp_path: Path, open_path: Path) -> Iterator[Site]:
    yield from make_site(job_database, tmp_path, open_path, first_batch=100)


@pytest.fixture
def careful_site(job_database: Database, tmp_path: Path, open_path: Path) -> Iterator[Site]:
    yield from make_site(job_database, tmp_path, open_path, first_batch=1)


def make_site(database: Database, tmp_path: Path, open_path: Path, *, first_batch: int) -> Iterator[Site]:
    account = "nobody" if os.geteuid() == 0 else ""
    places = {"directory": open_path / "pilots", "proxy": open_path / "pilots" / "robot.pem"}
    text = QUEUE.format(account=account, first_batch=first_batch, **places)
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(SLEEPS)
    queue = parse_queue(text, "TEST.toml")
    with factory_rig(database, Pki(tmp_path / "pki"), tmp_path, queue) as rig:
        site = Site(rig, queue, wrapper)
        try:
            yield site
        finally:
            site.end_all()


def test_waiting_jobs_bring_pilots_and_none_waiting_takes_the_waiting_ones_away(site: Site) -> None:
    site.all_queued = True  # as at a site that starts them later
    site.jobs(3)
    assert site.factory.dry_run("TEST")[0].startswith("send 3 pilots to local:TEST: 3 jobs wait")
    assert site.running() == []
    said = site.cycle()
    assert said[0].startswith("send 3 pilots")
    assert len(site.running()) == len(site.rig.live()) == 3
    said = site.cycle()
    assert said == ["nothing: 3 jobs wait, which 3 pilots can take; 0 idle and 3 waiting pilots are there"]
    site.no_jobs()
    site.cycle()
    site.clock.ahead += timedelta(minutes=6)
    assert any(line.startswith("cancel 3 pilots") for line in site.cycle())
    site.until(lambda: site.running() == [])
    site.cycle()
    assert {row["state"] for row in site.rig.sql("SELECT state FROM panda_pilot")} == {"cancelled"}
    assert list(Path(site.queue.ce.directory).glob("ap-*")) == []  # what ended was tidied away
    (state,) = site.rig.send(calls.factories())
    assert (state.queue, state.live_pilots) == ("TEST", 0)
    assert state.decisions


def test_an_element_that_eats_pilots_is_stopped_within_five_submissions_and_recovers_by_itself(
    careful_site: Site,
) -> None:
    site = careful_site
    site.jobs(50)
    site.wrapper.write_text(EATEN)
    for _ in range(12):
        said = site.cycle()
        site.until(lambda: site.running() == [])
    assert 1 <= len(site.submissions) <= 5
    assert said[-1].startswith("nothing for local:TEST: left alone for")
    assert "no pilot ever registered" in said[-1]
    kept = site.rig.sql("SELECT log_tail FROM panda_pilot WHERE log_tail <> ''")
    assert kept[0]["log_tail"] == "no software here\n"
    stopped_at = len(site.submissions)
    site.clock.ahead += timedelta(minutes=6)
    for _ in range(3):
        site.cycle()
        site.until(lambda: site.running() == [])
    assert site.submissions[stopped_at:] == [1]
    site.wrapper.write_text(SLEEPS)
    site.clock.ahead += timedelta(minutes=11)
    for _ in range(6):
        site.cycle()
        site.register()
    assert site.submissions[stopped_at + 1 :][:4] == [1, 2, 4, 8]


@pytest.mark.parametrize("found", [True, False])
def test_a_submission_that_broke_off_is_adopted_or_sent_after_all(site: Site, found: bool) -> None:
    """The factory was killed after its intent, or after its element had the pilots."""
    site.jobs(2)
    fence = site.rig.send(calls.factory_begin("TEST", FactoryBegin(holder="killed"))).fence
    intent = BatchIntent(queue="TEST", n_pilots=2, key=f"factory/{fence}/x", ce="local:TEST", factory_fence=fence)
    intended = site.rig.send(calls.intend_batch(intent))
    if found:
        tokens = {each.pilot_id: Secret(each.token.get_secret_value()) for each in intended.pilots}
        site.element.submit(PilotBatch(intended.tag, tokens))
    with pytest.raises(ConflictError, match="another factory"):
        site.cycle()
    site.rig.time_passes()
    said = site.cycle()
    assert said[0] == f"2 pilots of batch 1 {'adopted' if found else 'sent after all'}: its submission had broken off"
    assert len(site.running()) == 2
    assert sorted(site.rig.live().values()) == sorted(site.running())


def test_a_repeat_that_the_element_cannot_take_now_ends_no_pilot_that_is_there(site: Site) -> None:
    site.jobs(2)
    intended = site.rig.send(calls.intend_batch(BatchIntent(queue="TEST", n_pilots=2, key="dag/run/task", hold_s=1)))
    tokens = {each.pilot_id: Secret(each.token.get_secret_value()) for each in intended.pilots}
    site.element.submit(PilotBatch(intended.tag, tokens))
    site.rig.time_passes()
    site.broken = True
    site.cycle()
    assert set(tokens) <= set(site.rig.live())
    site.broken = False
    site.rig.time_passes()
    site.clock.ahead += timedelta(minutes=20)
    assert "2 pilots of batch 1 adopted" in site.cycle()[0]


def test_a_task_s_submission_that_broke_off_and_never_arrived_is_given_up(site: Site) -> None:
    site.rig.send(calls.intend_batch(BatchIntent(queue="TEST", n_pilots=2, key="dag/run/task", hold_s=1)))
    assert len(site.rig.live()) == 2
    site.rig.time_passes()
    assert "batch 1 is given up" in site.cycle()[0]
    assert site.rig.live() == {}


def no_connection(_queue: PandaQueue, _wrapper: Path) -> ComputingElement:
    raise ConfigurationError("Airflow has no Connection 'robot'")


def test_a_test_of_the_queue_that_cannot_reach_its_element_leaves_no_pilot(site: Site) -> None:
    test = QueueTest(site.rig.send, no_connection, site.wrapper, print)
    with pytest.raises(ConfigurationError, match="no Connection"):
        test.run("TEST")
    assert site.rig.live() == {}


@pytest.mark.parametrize(
    ("error", "arrives"),
    [(KeyboardInterrupt(), False), (KeyboardInterrupt(), True), (SubmitUncertainError("no answer"), True)],
)
def test_a_test_of_the_queue_that_breaks_off_leaves_no_pilot(site: Site, error: BaseException, arrives: bool) -> None:
    def element_of(queue: PandaQueue, wrapper: Path) -> ComputingElement:
        element = LocalElement(queue, wrapper.read_text(), grace_s=0.0)
        submit = element.submit

        def broken(batch: PilotBatch) -> Any:
            if arrives:
                submit(batch)
            raise error

        element.submit = broken  # type: ignore[method-assign]
        return element

    with pytest.raises(type(error)):
        QueueTest(site.rig.send, element_of, site.wrapper, print).run("TEST")
    assert site.rig.live() == {}
    assert site.rig.sql("SELECT state FROM panda_batch") == [{"state": "failed"}]
    site.until(lambda: site.running() == [])


@pytest.mark.parametrize("found", [True, False])
def test_the_pilot_of_a_killed_test_is_counted_on_by_nobody_and_is_not_there_for_ever(site: Site, found: bool) -> None:
    site.queue = replace(site.queue, factory=replace(site.queue.factory, max_pilots=1))
    site.jobs(1)
    intended = site.rig.send(calls.intend_batch(BatchIntent(queue="TEST", n_pilots=1, purpose="probe")))
    ((ticket,), probe) = intended.pilots, intended.pilots[0].pilot_id
    if found:
        site.element.submit(PilotBatch(intended.tag, {probe: Secret(ticket.token.get_secret_value())}))
    assert site.cycle()[0].startswith("send 1 pilot to local:TEST")
    site.rig.time_passes()
    site.cycle()
    assert (probe in site.rig.live(), len(site.rig.live())) == (found, 1 + found)
    site.rig.sql("UPDATE panda_pilot SET created_at = now() - interval '30 d' WHERE pilot_id = %s", probe)
    site.cycle()
    site.until(lambda: len(site.running()) == 1)
    site.cycle()
    assert probe not in site.rig.live()
    assert site.submissions == [1] * (1 + found), "one of work, and one that is an adoption"


def test_a_task_s_retry_that_comes_between_the_look_and_the_hold_is_adopted(site: Site) -> None:
    """The element has nothing when the factory looks; then the retry sends, hears no answer, and lets go."""
    intent = BatchIntent(queue="TEST", n_pilots=2, key="dag/run/task", hold_s=1)
    site.rig.send(calls.intend_batch(intent))
    site.rig.time_passes()

    def retry() -> None:
        intended = site.rig.send(calls.intend_batch(intent))
        tokens = {each.pilot_id: Secret(each.token.get_secret_value()) for each in intended.pilots}
        site.element.submit(PilotBatch(intended.tag, tokens))
        unsure = BatchRecord(state="uncertain", ce="local:TEST", reason="no answer", fence=intended.fence)
        site.rig.send(calls.record_batch(intended.batch_id, unsure))

    site.on_find = retry
    assert "2 pilots of batch 1 adopted" in site.cycle()[0]
    assert len(site.running()) == 2
    assert sorted(site.rig.live().values()) == sorted(site.running())


def test_a_cycle_that_breaks_off_lets_go_of_its_queue(site: Site) -> None:
    """The dispatcher refuses one call of it; the next cycle need not wait until the hold is over, and remembers."""
    site.jobs(2)
    site.busy_s = 300.0
    site.cycle()
    site.busy_s = 0.0
    site.clock.ahead += timedelta(minutes=6)

    def send(call: calls.Call[Any]) -> Any:
        if call.path == "/v1/batch/intend":
            raise ServiceError("the dispatcher answers 503")
        return site.rig.send(call)

    with pytest.raises(ServiceError, match="503"):
        replace(site.factory, send=send).cycle("TEST")
    (state,) = site.rig.send(calls.factories())
    assert state.decisions[-1] == "this cycle broke off, and the next one goes on: the dispatcher answers 503"
    assert "busy_reason" in site.rig.sql("SELECT memory::text AS text FROM panda_factory")[0]["text"]
    assert site.submissions == []
    site.cycle()
    assert site.submissions == [2]


def test_more_pilots_than_one_call_may_carry_are_cancelled_and_tidied_in_parts(site: Site) -> None:
    site.all_queued, site.max_handles = True, 2
    site.jobs(5)
    site.cycle()
    site.queue = replace(site.queue, state="offline")
    assert any(line.startswith("cancel 5 pilots") for line in site.cycle())
    site.until(lambda: site.running() == [])
    site.cycle()
    assert site.rig.live() == {}
    assert len(set(site.purged)) == 5
    known = site.rig.sql("SELECT memory->'ces'->'local:TEST'->>'refused' AS refused FROM panda_factory")
    assert known == [{"refused": ""}], "the element takes pilots as before"


def test_what_is_seen_of_a_great_many_pilots_is_told_in_calls_that_the_dispatcher_takes(site: Site) -> None:
    """As when a queue has moved to another element: all have news at once, and each with its reason."""
    site.rig.send(calls.intend_batch(BatchIntent(queue="TEST", n_pilots=9000)))
    site.rig.sql("UPDATE panda_batch SET state = 'submitted'")
    site.rig.sql("UPDATE panda_pilot SET state = 'submitted', missing_since = now() - interval '1 h'")
    site.rig.sql("UPDATE panda_pilot SET ce = 'slurm:TEST', ce_job_id = '77_' || pilot_id || '@ap-old'")
    assert len(site.rig.live()) == 9000
    site.cycle()
    assert site.rig.live() == {}


def test_pilots_of_an_element_that_the_file_has_no_more_do_not_shut_the_new_one(site: Site) -> None:
    """The queue has moved to another kind of element: the new one has no such handles, and says so."""
    site.jobs(2)
    site.cycle()
    site.end_all()
    site.rig.sql("UPDATE panda_pilot SET ce = 'slurm:TEST', ce_job_id = '77_' || pilot_id || '@ap-old'")
    assert site.cycle()[-1].startswith("nothing: 2 jobs wait, which 2 pilots can take; 0 idle and 2 waiting")
    site.rig.sql("UPDATE panda_pilot SET missing_since = now() - interval '1 h'")
    site.cycle()
    assert site.submissions == [2, 2]
    site.rig.sql("UPDATE panda_pilot SET ce = 'slurm:TEST', ce_job_id = '78_' || pilot_id || '@ap-old'")
    site.queue = replace(site.queue, state="offline")
    assert any(line.startswith("cancel 2 pilots") for line in site.cycle())
    site.cycle()
    assert {row["state"] for row in site.rig.sql("SELECT state FROM panda_pilot")} == {"lost", "cancelled"}
    assert site.rig.live() == {}


def test_what_a_pilot_that_speaks_has_is_left_alone_whatever_its_element_says(site: Site) -> None:
    site.jobs(2)
    site.cycle()
    site.says = PilotJobState.FAILED
    site.no_jobs()
    site.register()
    site.cycle()
    assert (len(site.rig.live()), site.purged) == (2, [])
    site.rig.sql("UPDATE panda_pilot SET last_seen_at = now() - interval '1 h'")
    site.cycle()
    assert site.rig.live() == {}
    assert len(site.purged) == 2


def test_pilots_that_are_on_no_record_are_ended_and_those_of_others_are_not(site: Site) -> None:
    mine = f"ap-{site.rig.gateway.issuer.installation}-0123456789abcdef"
    other = "ap-ffffffff-0123456789abcdef"
    for tag in (mine, other):
        site.element.submit(PilotBatch(tag, {1: Secret("token-of-nobody")}))
    assert not any("no record" in line for line in site.cycle())
    site.clock.ahead += timedelta(minutes=61)
    assert any(f"their tag {mine} is on no record" in line for line in site.cycle())
    site.until(lambda: len(site.running()) == 1)
    assert site.running() == [Handle(f"{other}-1")]


def test_pilots_that_the_element_lost_are_lost_unless_they_speak(site: Site) -> None:
    site.jobs(2)
    site.cycle()
    silent, speaking = sorted(site.rig.live())
    token = site.rig.gateway.issuer.pilot_token(speaking, "TEST", timedelta(hours=1), utcnow()).reveal()
    with site.rig.gateway.http(token=token) as http:
        http.post("/v1/pilot/update_worker_status", json={"status": "started", "node": "wn1"})
    site.end_all()
    handles = [Handle(name) for name in site.rig.live().values()]
    site.element.purge(handles)
    site.cycle()
    assert set(site.rig.live()) >= {silent, speaking}
    site.rig.sql("UPDATE panda_pilot SET missing_since = now() - interval '1 h'")
    site.no_jobs()
    site.cycle()
    assert set(site.rig.live()) == {speaking}


def test_a_site_that_does_not_answer_is_left_alone_and_tried_again(site: Site) -> None:
    site.jobs(2)
    site.broken = True
    said = [site.cycle() for _ in range(5)]
    assert any("the site does not answer" in line for line in said[0])
    assert "left alone for 5 min" in said[4][-1]
    site.broken = False
    site.clock.ahead += timedelta(minutes=6)
    site.cycle()
    assert site.submissions == [1]


def test_a_site_that_is_busy_is_left_in_peace_for_as_long_as_it_says(site: Site) -> None:
    site.jobs(2)
    site.busy_s = 300.0
    assert "local:TEST: come back later" in site.cycle()
    site.busy_s = 0.0
    for _ in range(5):  # patience is no failure: no breaker opens, and nothing is asked of the site
        assert site.cycle()[-1].startswith("nothing for local:TEST: the site asked for patience for 5 min more")
    assert site.submissions == []
    site.clock.ahead += timedelta(minutes=5)
    site.cycle()
    assert site.submissions == [2]


def test_a_site_that_refuses_the_description_is_tried_by_one_pilot_and_goes_on_when_it_is_mended(site: Site) -> None:
    """What it refuses may be its own: here the directory is open to others."""
    site.jobs(2)
    directory = Path(site.queue.ce.directory)
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        shutil.chown(directory, "nobody")
    directory.chmod(0o777)
    assert any("must not be writable by others" in line for line in site.cycle())
    assert "correct the queue file, or what it names at the site; tried again in 60 min" in site.cycle()[-1]
    directory.chmod(0o711)
    assert site.cycle()[-1].startswith("nothing for local:TEST: it does not accept this queue's pilots")
    site.clock.ahead += timedelta(minutes=61)
    site.cycle()
    site.cycle()
    assert site.submissions == [1, 1], "and when one is taken, the others"


def test_the_pilots_credential_is_kept_fresh_though_nothing_is_submitted(site: Site, tmp_path: Path) -> None:
    issuer = ProxyCredential.from_files(*site.rig.gateway.pki.user("pilot"))
    made: list[ProxyCredential] = []

    def credential_of(name: str, lifetime: timedelta) -> ProxyCredential:
        assert name == "robot"
        made.append(create_proxy(issuer, lifetime=lifetime, now=utcnow()))
        return made[-1]

    rules = replace(site.queue.factory, credential="robot", enabled=False)
    site.queue = replace(site.queue, factory=rules)
    (tmp_path / "again").mkdir()
    with factory_rig(site.rig.database, site.rig.gateway.pki, tmp_path / "again", site.queue) as rig:
        site.rig, site.credential_of = rig, credential_of
        assert any("is fresh: it ends at" in line for line in site.cycle())
        place = Path(site.queue.pilot.proxy)
        assert place.read_bytes() == made[0].to_pem().reveal()
        assert place.stat().st_mode & 0o777 == 0o600
        if os.geteuid() == 0:
            assert place.owner() == "nobody"
        site.cycle()
        assert len(made) == 1
        site.clock.ahead += timedelta(hours=13)
        site.cycle()
        assert place.read_bytes() == made[1].to_pem().reveal()
        assert [path.name for path in place.parent.glob(".*")] in ([], [".submit.lock"])


def test_no_pilot_is_sent_before_its_credential_is_there(site: Site, tmp_path: Path) -> None:
    """The robot's Connection is wrong from the beginning: a pilot would find no proxy, or somebody's old one."""

    def credential_of(name: str, _lifetime: timedelta) -> ProxyCredential:
        if broken:
            raise ConfigurationError(f"the Connection {name!r} names no credential")
        return create_proxy(issuer, lifetime=timedelta(days=1), now=utcnow())

    broken, issuer = True, ProxyCredential.from_files(*site.rig.gateway.pki.user("pilot"))
    site.queue = replace(site.queue, factory=replace(site.queue.factory, credential="robot"))
    site.credential_of = credential_of
    site.jobs(2)
    said = site.cycle()
    assert "cannot be renewed: the Connection 'robot' names no credential" in said[0]
    assert said[-1] == "nothing for local:TEST: the pilots' credential 'robot' has not been put there yet"
    assert site.submissions == []
    broken = False
    site.cycle()
    assert site.submissions == [2]


def test_no_pilot_is_sent_that_the_credential_its_element_brings_would_not_outlive(site: Site) -> None:
    """As on an ARC CE whose robot's certificate ends soon: 2 h walltime, 20 min waiting, 1 h margin."""
    site.jobs(1)
    site.credential_ends = site.clock.now() + timedelta(hours=3)
    assert "the pilots' credential there ends in 3 h, and a pilot needs it for 3 h" in site.cycle()[-1]
    assert site.submissions == []
    site.credential_ends = site.clock.now() + timedelta(hours=4)
    site.cycle()
    assert site.submissions == [1]


def test_a_queue_with_two_elements_uses_both_and_does_without_a_broken_one(
    job_database: Database, tmp_path: Path, open_path: Path
) -> None:
    account = "nobody" if os.geteuid() == 0 else ""
    places = {"directory": open_path / "one", "proxy": open_path / "robot.pem"}
    second = f'[ces.second]\nkind = "local"\naccount = "{account}"\ndirectory = "{open_path / "two"}"\n'
    queue = parse_queue(QUEUE.format(account=account, first_batch=100, **places) + second, "TEST.toml")
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(SLEEPS)
    with factory_rig(job_database, Pki(tmp_path / "pki"), tmp_path, queue) as rig:
        sites = [Site(rig, queue.at(name), wrapper) for name in queue.ces]
        broken: set[str] = set()

        def element_of(one: PandaQueue, path: Path) -> ComputingElement:
            if one.ce.directory in broken:  # type: ignore[union-attr]
                raise CEUnavailableError("no route to it")
            return make_element(one, path)

        factory = Factory(rig.send, element_of, wrapper, "a test")
        try:
            sites[0].jobs(6)
            said = factory.cycle("TEST")
            assert [line.split(":")[0] for line in said] == ["send 3 pilots to local", "send 3 pilots to second"]
            assert [len(site.running()) for site in sites] == [3, 3]
            rows = rig.sql("SELECT ce, count(*) AS n FROM panda_pilot GROUP BY ce ORDER BY ce")
            assert {row["ce"]: row["n"] for row in rows} == {"local:TEST": 3, "second": 3}
            sites[1].end_all()
            factory.cycle("TEST")
            assert len(rig.live()) == 6  # ended at the second one, replaced at once
            broken.add(str(open_path / "two"))
            sites[0].end_all()
            assert any("no route to it" in line for line in factory.cycle("TEST"))
            assert len(sites[0].running()) > 0
        finally:
            for site in sites:
                site.end_all()


def lines_until_killed(site: Site, at_line: int) -> int:
    """Run a cycle in another process that dies at its n-th line of ours (0: never); answer the lines that it ran."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        lines = 0

        def on_line(_frame: FrameType, event: str, _arg: Any) -> Any:
            nonlocal lines
            lines += event == "line"
            if lines == at_line > 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return on_line

        try:
            sys.settrace(lambda frame, *_: on_line if frame.f_code.co_filename in TRACED else None)
            site.cycle()
            sys.settrace(None)
            os.write(writing, str(lines).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as answer:
        return int(answer.read() or 0)


@pytest.mark.timeout(900)
def test_a_factory_killed_anywhere_in_its_cycle_leaves_as_many_pilots_as_are_needed(site: Site) -> None:
    """One point in eight of all the lines that a cycle with a submission runs, each after a fresh start."""
    site.jobs(3)
    whole = lines_until_killed(site, 0)
    assert whole > 150
    for at_line in range(1, whole, 8):
        site.end_all()
        site.element.purge([Handle(path.name) for path in Path(site.queue.ce.directory).glob("ap-*")])
        site.rig.forget()
        assert lines_until_killed(site, at_line) == 0
        site.rig.time_passes()
        site.cycle()
        assert len(site.running()) == 3, at_line
        assert sorted(site.rig.live().values()) == sorted(site.running()), at_line
        assert site.cycle()[-1].startswith("nothing: 3 jobs wait"), at_line


def test_two_factories_at_once_send_no_more_than_one(site: Site) -> None:
    """One process each, as two workers would."""
    site.jobs(4)
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                site.cycle()
            except ConflictError:
                pass
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    assert len(site.running()) == len(site.rig.live()) == 4
    assert sorted(site.running()) == sorted(site.rig.live().values())


def test_the_dag_s_own_operators_do_it_and_wait_without_a_slot(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(
        monkeypatch,
        host="localhost",
        port=site.rig.gateway.port,
        schema="https",
        password=site.rig.gateway.client_token(),
        extra_dejson={"ca_file": str(site.rig.gateway.pki.ca_dir)},
    )
    monkeypatch.setattr(operators, "wrapper_path", lambda: site.wrapper)
    site.jobs(3)
    dag = DagBag(dag_folder=str(DAGS / "panda_pilot_factory.py")).dags["panda_pilot_factory"]
    names = {"dag_id": "panda_pilot_factory", "run_id": "r", "map_index": 0, "try_number": 1, "id": "u"}
    context = {"ti": SimpleNamespace(**names, task_id="factory")}
    assert dag.get_task("queues").execute(context) == ["TEST"]
    operator = dag.get_task("factory").unmap({"panda_queue": "TEST"})
    operator.say_only = "True"
    assert operator.execute(context)[0].startswith("send 3 pilots")
    assert site.running() == []
    operator.say_only = "False"
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    assert len(site.running()) == 3
    assert (deferred.value.method_name, deferred.value.kwargs) == ("next_cycle", {"left": 8})
    assert operator.next_cycle(context, None, left=1)[0].startswith("nothing: 3 jobs wait")
    site.rig.sql("UPDATE panda_factory SET held_until = now() + interval '1 h', holder = 'somebody'")
    assert "another factory (somebody) has the queue TEST" in operator.next_cycle(context, None, left=1)[0]
    assert len(site.running()) == 3


def test_the_command_says_what_it_would_do_and_does_it(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.jobs(2)
    gateway, token = site.rig.gateway, site.wrapper.with_name("token")
    token.write_text(gateway.client_token())
    (site.wrapper.parent / "pilot").mkdir()
    site.wrapper.rename(site.wrapper.parent / "pilot" / "wrapper.sh")
    site.wrapper = site.wrapper.parent / "pilot" / "wrapper.sh"
    where = ["--dispatcher", gateway.url, "--token-file", str(token), "--ca-file", str(gateway.pki.ca_dir)]
    where += ["--include", str(token.parent)]
    assert main(["factory", "--dry-run", *where]) == 0
    assert capsys.readouterr().out.startswith("TEST: send 2 pilots to local:TEST: 2 jobs wait")
    assert site.running() == []
    assert main(["factory", "TEST", "NOSUCH", *where]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("TEST: send 2 pilots")
    assert "NOSUCH: there is no queue 'NOSUCH'" in err
    assert len(site.running()) == 2


def test_the_command_puts_the_pilots_credential_in_place_too(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    robot = replace(site.queue, factory=replace(site.queue.factory, credential="robot"))
    (site.rig.directory / "queues" / "TEST.toml").write_text(as_toml(robot))  # nobody has read it yet
    certificate, key = map(str, site.rig.gateway.pki.user("pilot"))
    extra = {"certificate_file": certificate, "key_file": key}
    monkeypatch.setenv("AIRFLOW_CONN_ROBOT", json.dumps({"conn_type": "generic", "extra": extra}))
    gateway, folder = site.rig.gateway, site.wrapper.parent
    (folder / "token").write_text(gateway.client_token())
    (folder / "pilot").mkdir()
    (folder / "pilot" / "wrapper.sh").write_text(SLEEPS)
    site.jobs(1)
    where = ["--dispatcher", gateway.url, "--token-file", str(folder / "token"), "--ca-file", str(gateway.pki.ca_dir)]
    assert main(["factory", "TEST", *where, "--include", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "TEST: the pilots' credential at local:TEST is fresh" in said
    assert "TEST: send 1 pilot to local:TEST" in said
    assert ProxyCredential.from_pem(Path(site.queue.pilot.proxy).read_bytes()).not_after > utcnow()
    assert len(site.running()) == 1
