"""What goes wrong with a GRAM5 CE: who must act is said, nothing is doubled, nothing is lost."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.elements import SLEEP, batch, until
from support.gram_rig import GramRig, make_gram_rig
from support.need import need_program
from support.pki import Pki
from support.slurm import free_port, running_slurm

from airpanda.computing import gram_client
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    InvalidDescriptionError,
    PilotJobState,
    Renewable,
    SubmitUncertainError,
)
from airpanda.computing.gram import GramElement

pytestmark = [pytest.mark.root, pytest.mark.integration]


@pytest.fixture(scope="module", name="rig")
def module_rig() -> Iterator[GramRig]:
    yield from make_gram_rig()


@pytest.fixture(autouse=True)
def tidy(rig: GramRig) -> Iterator[None]:
    yield
    rig.tidy()


def test_a_gatekeeper_that_is_down_takes_nothing(rig: GramRig) -> None:
    rig.gram.stop()
    try:
        for call in (lambda e: e.submit(batch("down", 1)), lambda e: e.find("down"), lambda e: e.load()):
            with pytest.raises(CEUnavailableError, match="connection to the server failed"):
                call(rig.element(SLEEP))
    finally:
        rig.gram.start()


def test_a_gatekeeper_that_hangs_leaves_it_open_what_was_submitted(rig: GramRig) -> None:
    rig.gram.signal(signal.SIGSTOP)
    try:
        element = rig.element(SLEEP)
        element._timeout_s = 3.0  # of one program
        with pytest.raises(SubmitUncertainError, match="did not run a program in time"):
            element.submit(batch("hung", 1))
        with pytest.raises(CEUnavailableError, match="in time"):
            element.find("hung")
    finally:
        rig.gram.signal(signal.SIGCONT)


def test_who_must_act_when_ce_and_robot_do_not_accept_each_other(rig: GramRig, tmp_path: Path) -> None:
    stranger = Pki(tmp_path / "pki")
    with pytest.raises(CECredentialError, match="ca_dir"):
        rig.element(SLEEP, ca_dir=str(stranger.ca_dir)).find("t")
    with pytest.raises(CECredentialError, match="the site's mapping"):
        rig.element(SLEEP, credential=rig.site.proxy("alice")).submit(batch("alice", 1))
    short = rig.site.proxy("pilot", hours=0.1)
    with pytest.raises(CECredentialError, match="ends before a pilot"):
        rig.element(SLEEP, credential=short).submit(batch("late", 1))
    expired = GramElement(rig.queue(), SLEEP, short, clock=lambda: datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(CECredentialError, match="is over"):
        expired.find("t")
    with pytest.raises(InvalidDescriptionError, match=r"took 0 of 1.*find the requested service"):
        rig.element(SLEEP, service="jobmanager-none").submit(batch("none", 1))
    assert not rig.path("none").exists()


def test_a_machine_without_the_client_says_what_to_install(
    rig: GramRig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gram_client, "_PATH", "/nowhere")
    with pytest.raises(CEUnavailableError, match="globus-gram-client-tools"):
        rig.element(SLEEP).find("t")
    only_globusrun = tmp_path / "globusrun"
    only_globusrun.symlink_to("/usr/bin/globusrun")
    monkeypatch.setattr(gram_client, "_PATH", str(tmp_path))
    with pytest.raises(CEUnavailableError, match="bubblewrap"):
        rig.element(SLEEP).find("t")


def test_the_ce_can_fetch_its_data_and_no_other_file_of_this_machine(rig: GramRig, tmp_path: Path) -> None:
    """The client's file server would show all that it can read to whoever has a proxy of the robot, as pilots do."""
    secret = tmp_path / "secret"
    secret.write_text("fernet-key")
    first = free_port()
    element = rig.element(SLEEP, ports=f"{first},{first + 3}")
    shown = element._gram._place() / "shown"
    shown.write_text("for the CE")
    script = f"""
        for path in {shown} {secret} /etc/shadow /proc/self/environ; do for port in $(seq {first} {first + 3}); do
            timeout 10 globus-url-copy "https://localhost:$port$path" "file://$PWD/got" && cat got; rm -f got
        done; done"""
    said = element._gram.run(["sh", "-c", script], timeout_s=200)
    assert said.stdout == b"for the CE", said


def test_lost_answers_double_nothing_and_a_repeat_sends_what_is_missing(
    rig: GramRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submitter dies after its first job, whose contact it has not put on record; and again before the record."""
    marks = rig.site.directory(mode=0o777)
    script = f'echo x >>{marks}/$(basename "$PWD"); {SLEEP}'
    first = rig.element(script)
    submit_one = first._submit_one

    def dies(tag: str, index: int, end: float) -> str:
        if index > 0:
            raise KeyboardInterrupt
        return submit_one(tag, index, end)

    monkeypatch.setattr(first, "_submit_one", dies)
    with pytest.raises(KeyboardInterrupt):
        first.submit(batch("lost", 1, 2, 3))
    second = rig.element(script)
    monkeypatch.setattr(second, "_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        second.submit(batch("lost", 1, 2, 3))
    element = rig.element(script)
    submission = element.submit(batch("lost", 1, 2, 3))
    handles = list(submission.handles.values())
    until(lambda: {s.state for s in element.status(handles).values()} == {PilotJobState.RUNNING})
    assert set(element.find("lost")) == set(handles)
    written = {path.name: path.read_text() for path in rig.site.node.path(marks).iterdir()}
    assert written == dict.fromkeys("012", "x\n")


def test_pilots_run_on_slurm_behind_gram(rig: GramRig) -> None:
    """Waiting and running pilots, ends and cancels, as Slurm, GRAM's script for it and the files tell them."""
    if not Path("/usr/share/perl5/Globus/GRAM/JobManager/slurm.pm").exists():
        need_program("globus-job-manager-slurm", "globus-gram-job-manager-slurm")
    with running_slurm(rig.site.node, cpus=2) as slurm:
        element = rig.element("is() { grep -q '\"pilot_id\": '$1, pilot.json; }\nis 1 && exit 7\n" + SLEEP,
                              service="jobmanager-slurm", queue="grid")  # fmt: skip
        handles = element.submit(batch("slurm", 1, 2, 3, 4)).handles
        until(lambda: element.status([handles[1]])[handles[1]].exit_code == 7)

        def states() -> list[str]:
            return sorted(status.state.value for status in element.status(list(handles.values())).values())

        until(lambda: states() == ["failed", "queued", "running", "running"])
        assert len(slurm.root("squeue", "-h", "-t", "all").splitlines()) == 4
        assert slurm.root("squeue", "-h", "-o", "%u %P").split() == ["pilot", "grid"] * 3
        element.cancel(list(handles.values()))
        until(lambda: states() == ["cancelled", "cancelled", "cancelled", "failed"])
        until(lambda: slurm.root("squeue", "-h").strip() == "")


def test_renewal_reaches_pilots_that_run(rig: GramRig) -> None:
    element = rig.element(SLEEP, credential=rig.site.proxy("pilot", hours=2))
    assert isinstance(element, Renewable)
    handle = element.submit(batch("r", 1)).handles[1]
    until(lambda: element.status([handle])[handle].state is PilotJobState.RUNNING)
    fresh = rig.site.proxy("pilot", hours=20)
    assert element.renew(fresh) == fresh.not_after
    proxy = rig.site.node.path(Path(json.loads(rig.path("r/0/pilot.json").read_text())["proxy"]))
    ends = rig.gram.root("openssl", "x509", "-noout", "-enddate", stdin=proxy.read_bytes())
    seen = datetime.strptime(ends.strip(), "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
    assert abs(seen - fresh.not_after) < timedelta(minutes=10)
    at_ce = rig.element(SLEEP, proxy="/home/pilot/robot.pem")
    at_ce.renew(fresh)
    assert rig.site.node.path(Path("/home/pilot/robot.pem")).read_bytes() == fresh.to_pem().reveal()
