"""The contract of ``ComputingElement`` over real Slurm, from its own node and over SSH."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from support.batch_rig import Rig, make_rig
from support.elements import (
    SLEEP,
    await_state,
    batch,
    log,
    purges_what_ended,
    refuses_handles_of_another_kind,
    refuses_other_pilots,
    runs_is_found_and_adopted,
    states,
    tells_how_pilots_ended,
    tells_unknown_from_failure,
    until,
)
from support.launcher import PILOT_UID

from airpanda.computing.batch import BatchElement
from airpanda.computing.elements import (
    Handle,
    InvalidDescriptionError,
    ListsTags,
    Load,
    Outcome,
    PilotJobState,
    Renewable,
    ReportsLoad,
    ThrottledError,
    make_element,
)
from airpanda.core.clock import utcnow
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

pytestmark = [pytest.mark.root, pytest.mark.integration]

over_ssh = pytest.mark.parametrize("via", ["ssh"])  # where the transport cannot matter


PROXY = "/home/pilot/robot's.pem"
WRAPPER = Path(__file__).resolve().parents[2] / "include/pilot/wrapper.sh"


@pytest.fixture(scope="module", name="rig")
def module_rig() -> Iterator[Rig]:
    yield from make_rig()


@pytest.fixture(autouse=True)
def tidy(rig: Rig) -> Iterator[None]:
    yield
    rig.tidy()


@pytest.fixture(params=["local", "ssh"])
def via(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_handle_of_another_kind_is_refused_before_it_travels(rig: Rig, via: str) -> None:
    handles = ("../../root-1", "x", "1_2@t/..", "1_2@t\n", "1_2@t;id", "$(id)_1@t", "1_-1@t")
    refuses_handles_of_another_kind(rig.element(SLEEP, via), handles)


def test_unknown_handles_and_tags_are_told_apart_from_failures(rig: Rig, via: str) -> None:
    tells_unknown_from_failure(rig.element(SLEEP, via), Handle("99999_0@never"))


def test_a_batch_runs_is_found_and_a_repeat_adopts(rig: Rig, via: str) -> None:
    runs_is_found_and_adopted(lambda: rig.element(SLEEP, via), f"a-{via}", f"a-{via}-")
    assert sorted(rig.jobs(f"a-{via}")) == ["0", "1", "2"]


@over_ssh
def test_a_tag_in_use_for_other_pilots_is_refused(rig: Rig, via: str) -> None:
    element = rig.element(SLEEP, via)
    element.submit(batch(f"u-{via}", 30, 31))
    refuses_other_pilots(element, f"u-{via}")


def test_exit_codes_become_states_and_logs_can_be_read(rig: Rig, via: str) -> None:
    tells_how_pilots_ended(lambda wrapper: rig.element(wrapper, via), f"-{via}")


def test_cancel_ends_what_runs_and_what_waits_and_a_repeat_is_no_error(rig: Rig, via: str) -> None:
    element = rig.element(SLEEP, via)
    handles = list(element.submit(batch(f"c-{via}", *range(70))).handles.values())
    until(lambda: states(element.status(handles)) == {PilotJobState.RUNNING, PilotJobState.QUEUED})
    assert set(element.cancel(handles).values()) == {Outcome.ACCEPTED}
    until(lambda: states(element.status(handles)) == {PilotJobState.CANCELLED})
    assert set(element.cancel(handles).values()) == {Outcome.ALREADY_OVER}


@over_ssh
def test_an_administrator_holds_and_cancels_pilots_that_wait(rig: Rig, via: str) -> None:
    element = rig.element(SLEEP, via, options=["--hold"])
    handles = list(element.submit(batch(f"h-{via}", 1, 2)).handles.values())
    assert states(element.status(handles)) == {PilotJobState.HELD}
    rig.slurm.root("scancel", f"--name=h-{via}")
    assert states(element.find(f"h-{via}")) == states(element.status(handles)) == {PilotJobState.CANCELLED}


def test_a_pilot_that_does_not_listen_is_killed(rig: Rig) -> None:
    element = rig.element("trap '' TERM; while :; do sleep 1; done\n", "ssh")
    handle = element.submit(batch("k", 1)).handles[1]
    await_state(element, handle, PilotJobState.RUNNING)
    element.cancel([handle])
    await_state(element, handle, PilotJobState.CANCELLED)


@over_ssh
def test_a_pilot_that_was_killed_is_not_done(rig: Rig, via: str) -> None:
    element = rig.element("kill -9 $PPID; exit 0\n", via)
    handle = element.submit(batch(f"l-{via}", 1)).handles[1]
    until(lambda: element.status([handle])[handle].state.is_final)
    assert element.status([handle])[handle].state is PilotJobState.FAILED


@over_ssh
def test_purge_keeps_what_runs_and_removes_what_ended(rig: Rig, via: str) -> None:
    element = rig.element("exit 0\n", via)
    first = element.submit(batch(f"p-{via}", 1)).handles[1]
    running = rig.element(SLEEP, via).submit(batch(f"p2-{via}", 1)).handles[1]
    await_state(element, first, PilotJobState.DONE)
    purges_what_ended(element, [first], running)
    assert not rig.path(f"p-{via}").exists()
    assert rig.path(f"p2-{via}/0").is_dir()
    assert element.purge([first]) == {first: Outcome.NOT_FOUND}


@over_ssh
def test_what_ended_two_days_ago_goes_with_the_next_submission(rig: Rig, via: str) -> None:
    """Nobody purges a pilot that has ended well. What waits for so long, ended lately, or is no pilot's stays."""
    element = rig.element("exit 0\n", via)
    old, kept = element.submit(batch(f"old-{via}", 1, 2)), element.submit(batch(f"kept-{via}", 1))
    waiting = rig.element(SLEEP, via, options=["--hold"]).submit(batch(f"waits-{via}", 1)).handles[1]
    for handle in [*old.handles.values(), *kept.handles.values()]:
        await_state(element, handle, PilotJobState.DONE)
    rig.path("foreign/0").mkdir(parents=True)
    rig.path("foreign/0/exit").touch()
    ago = time.time() - 2 * 86400 - 120
    for place in (f"old-{via}/0/exit", f"waits-{via}/0/pilot.json", "foreign/0/exit"):
        os.utime(rig.path(place), (ago, ago))
    element.submit(batch(f"next-{via}", 1))
    assert not rig.path(f"old-{via}/0").exists()
    assert all(rig.path(place).is_dir() for place in (f"old-{via}/1", f"kept-{via}/0", f"waits-{via}/0", "foreign/0"))
    assert element.status([waiting])[waiting].state in (PilotJobState.HELD, PilotJobState.QUEUED)
    os.utime(rig.path(f"old-{via}/1/exit"), (ago, ago))
    element.submit(batch(f"last-{via}", 1))
    assert not rig.path(f"old-{via}").exists(), "with the last of its copies the batch goes"


def test_modes_secrets_and_what_a_pilot_sees(rig: Rig, via: str) -> None:
    element = rig.element("cat /proc/self/environ; ls -la; id -u; " + SLEEP, via)
    handle = element.submit(batch(f"s-{via}", 1)).handles[1]
    await_state(element, handle, PilotJobState.RUNNING)
    until(lambda: f"\n{PILOT_UID}\n".encode() in log(element, handle))
    place = rig.path(f"s-{via}/0")
    assert place.stat().st_mode & 0o777 == 0o700
    for path in [*place.iterdir(), *(p for p in place.parent.iterdir() if p.is_file())]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert place.parent.stat().st_mode & 0o777 == 0o711  # payload accounts pass through to their sandboxes
    assert "token-of-1" in (place / "pilot.json").read_text()
    assert b"token-of-1" not in element.fetch(handle)
    assert b"SLURM" not in element.fetch(handle)
    shown = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, check=True).stdout.decode()
    shown += rig.slurm.root("scontrol", "show", "job")
    assert "token-of-1" not in shown
    element.cancel([handle])
    until(lambda: not (place / "pilot.json").exists())


@over_ssh
def test_more_than_max_pilots_is_throttled_and_starts_nothing(rig: Rig, via: str) -> None:
    small = rig.element(SLEEP, via, max_pilots=3)
    small.submit(batch(f"m-{via}", 1, 2))
    with pytest.raises(ThrottledError, match=r"2 pilots are there.*max_pilots = 3") as caught:
        small.submit(batch(f"m2-{via}", 1, 2))
    assert caught.value.retry_after_s
    assert small.find(f"m2-{via}") == {}
    assert not rig.path(f"m2-{via}").exists()


def test_a_thousand_pilots_are_one_job_and_one_look(rig: Rig, via: str) -> None:
    element = rig.element(SLEEP, via)
    pilots = range(5000, 6000)
    submission = element.submit(batch(f"big-{via}", *pilots))
    handles = list(submission.handles.values())
    assert len(set(handles)) == 1000
    assert len({handle.split("_")[0] for handle in handles}) == 1
    assert len(element.status(handles)) == 1000
    assert set(element.find(f"big-{via}")) == set(handles)
    assert set(element.cancel(handles).values()) == {Outcome.ACCEPTED}
    with pytest.raises(InvalidDescriptionError, match="limit"):
        element.submit(batch("too-many", *range(1001)))


def test_the_load_is_what_waits_and_what_runs(rig: Rig, via: str) -> None:
    element = rig.element(SLEEP, via)
    assert isinstance(element, ReportsLoad)
    until(lambda: element.load() == Load(0, 0))
    rig.element(SLEEP, via, options=["--hold"]).submit(batch(f"held-{via}", 1, 2, 3))
    element.submit(batch(f"load-{via}", 1, 2))
    until(lambda: element.load() == Load(3, 2))


@over_ssh
def test_a_directory_that_others_can_write_is_refused(rig: Rig, via: str) -> None:
    open_for_all = rig.site.node.path(Path("/home/pilot/open"))
    rig.slurm.root("install", "-d", "-o", "pilot", "-m", "0777", "/home/pilot/open")
    with pytest.raises(InvalidDescriptionError, match="writable by others"):
        rig.element(SLEEP, via, directory="/home/pilot/open").submit(batch("w", 1))
    open_for_all.chmod(0o755)
    with pytest.raises(InvalidDescriptionError, match="cannot be made"):
        rig.element(SLEEP, via, directory="/proc/nowhere").submit(batch("w", 1))


def test_a_tag_that_differs_in_case_is_another_one(rig: Rig, via: str) -> None:
    element, tag = rig.element(SLEEP, via), f"case-{via}"
    upper = element.submit(batch(tag.upper(), 1))
    lower = element.submit(batch(tag, 2))
    assert not upper.adopted
    assert not lower.adopted
    assert set(element.find(tag.upper())) == set(upper.handles.values())
    assert set(element.find(tag)) == set(lower.handles.values())


def test_pilots_are_listed_by_what_their_tags_begin_with_and_only_while_they_live(rig: Rig, via: str) -> None:
    element = rig.element(SLEEP, via)
    assert isinstance(element, ListsTags)
    tag = f"ap-01234567-{via}"
    mine = element.submit(batch(tag, 1, 2)).handles
    element.submit(batch(f"ap-76543210-{via}", 3))
    assert {name: set(found) for name, found in element.tagged("ap-01234567-").items()} == {tag: set(mine.values())}
    element.cancel(list(mine.values()))
    until(lambda: element.tagged("ap-01234567-") == {})


@pytest.fixture
def renewable(rig: Rig, via: str) -> Iterator[BatchElement]:
    queue = rig.queue(via)
    queue = replace(queue, pilot=replace(queue.pilot, proxy=PROXY))
    element = make_element(queue, WRAPPER, login=rig.sshd.login if via == "ssh" else None)
    assert isinstance(element, BatchElement)
    yield element
    element.close()


def test_a_fresh_credential_takes_the_place_of_the_old_one_whole(rig: Rig, renewable: BatchElement) -> None:
    assert isinstance(renewable, Renewable)
    place = rig.site.node.path(Path(PROXY))
    issuer = ProxyCredential.from_files(*rig.site.pki.user("pilot"))
    for hours in (1, 2):
        fresh = create_proxy(issuer, lifetime=timedelta(hours=hours), now=utcnow())
        assert renewable.renew(fresh) == fresh.not_after
        assert place.read_bytes() == fresh.to_pem().reveal()
        assert (place.stat().st_mode & 0o777, place.stat().st_uid) == (0o600, PILOT_UID)
    assert [path.name for path in place.parent.glob("robot*")] == ["robot's.pem"]


def test_a_credential_is_never_written_through_a_link_or_over_another_s_file(rig: Rig, renewable: BatchElement) -> None:
    place = rig.site.node.path(Path(PROXY))
    issuer = ProxyCredential.from_files(*rig.site.pki.user("pilot"))
    fresh = create_proxy(issuer, lifetime=timedelta(hours=1), now=utcnow())
    place.unlink(missing_ok=True)
    rig.slurm.root("ln", "-s", "/home/pilot/elsewhere", PROXY)
    with pytest.raises(InvalidDescriptionError, match="not a file of the pilots' account"):
        renewable.renew(fresh)
    assert not rig.site.node.path(Path("/home/pilot/elsewhere")).exists()
    rig.slurm.root("sh", "-c", 'rm -f -- "$0"; echo root > "$0"', PROXY)
    with pytest.raises(InvalidDescriptionError, match="not a file of the pilots' account"):
        renewable.renew(fresh)
    assert place.read_text() == "root\n"
    rig.slurm.root("rm", "-f", PROXY)
