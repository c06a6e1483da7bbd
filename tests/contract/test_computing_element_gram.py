"""The contract of ``ComputingElement`` over a real GRAM5 CE: gatekeeper, job manager and its fork back-end."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.batch_rig import SLEEP, batch, until
from support.gram_rig import GramRig, make_gram_rig

from airpanda.computing import remote
from airpanda.computing.elements import (
    Handle,
    HasOutput,
    InvalidDescriptionError,
    ListsTags,
    NotFoundAtCEError,
    Outcome,
    PilotJobState,
    Purgeable,
    ReportsLoad,
    Status,
    ThrottledError,
)
from airpanda.computing.gram import GramElement

pytestmark = [pytest.mark.root, pytest.mark.integration]
UNKNOWN = Handle("gram_0@never")


@pytest.fixture(scope="module", name="rig")
def module_rig() -> Iterator[GramRig]:
    yield from make_gram_rig()


@pytest.fixture(autouse=True)
def tidy(rig: GramRig) -> Iterator[None]:
    yield
    rig.tidy()


def states(statuses: Mapping[Handle, Status]) -> set[PilotJobState]:
    return {status.state for status in statuses.values()}


def await_state(element: GramElement, handle: Handle, state: PilotJobState) -> Status:
    until(lambda: element.status([handle])[handle].state is state, 60)
    return element.status([handle])[handle]


def test_a_handle_of_another_kind_is_refused_before_it_travels(rig: GramRig) -> None:
    element = rig.element(SLEEP)
    for handle in ("../../x_1@t", "gram_1@../t", "gram_1", "gram_x@t", "gram_1@t\n", ""):
        for call in (element.status, element.cancel, element.purge):
            with pytest.raises(InvalidDescriptionError, match="no handle"):
                call([Handle(handle)])
        with pytest.raises(InvalidDescriptionError, match="no handle"):
            element.fetch(Handle(handle))


def test_unknown_handles_and_tags_are_told_apart_from_failures(rig: GramRig) -> None:
    element = rig.element(SLEEP)
    assert element.status([UNKNOWN])[UNKNOWN].state is PilotJobState.UNKNOWN
    assert element.find("never") == {}
    assert element.cancel([UNKNOWN]) == element.purge([UNKNOWN]) == {UNKNOWN: Outcome.NOT_FOUND}
    with pytest.raises(NotFoundAtCEError):
        element.fetch(UNKNOWN)


def test_a_batch_runs_is_found_and_a_repeat_adopts(rig: GramRig) -> None:
    first = rig.element(SLEEP).submit(batch("a", 31, 30, 32))
    assert set(first.handles) == {30, 31, 32}
    assert not first.adopted
    element = rig.element(SLEEP)
    again = element.submit(batch("a", 30, 31, 32))
    assert again.handles == first.handles
    assert again.adopted == {30, 31, 32}
    until(lambda: states(element.find("a")) == {PilotJobState.RUNNING}, 60)
    element.submit(batch("a-", 1))
    assert set(element.find("a")) == set(rig.element(SLEEP).find("a")) == set(first.handles.values())
    assert isinstance(element, ListsTags)
    tagged = rig.element(SLEEP).tagged("a")
    assert {tag: set(handles) for tag, handles in tagged.items()} == {
        "a": set(first.handles.values()),
        "a-": {Handle("gram_0@a-")},
    }
    with pytest.raises(InvalidDescriptionError, match="other pilots"):
        element.submit(batch("a", 30, 33))
    assert isinstance(element, ReportsLoad)
    assert element.load().running >= 3


def test_ends_become_states_logs_can_be_read_and_purge_keeps_what_runs(rig: GramRig) -> None:
    done = rig.element("exit 0\n").submit(batch("good", 1)).handles[1]
    killed = rig.element("kill -9 $(ps -o ppid= -p $PPID) $PPID\n").submit(batch("killed", 1)).handles[1]
    running = rig.element(SLEEP).submit(batch("sleeps", 1)).handles[1]
    element = rig.element("echo why >&2; exit 7\n")
    failed = element.submit(batch("bad", 2)).handles[2]
    ended = [done, failed, killed]
    until(lambda: all(s.state.is_final for s in element.status(ended).values()), 60)
    seen = element.status([*ended, running])
    assert (seen[done].state, seen[done].exit_code) == (PilotJobState.DONE, 0)
    assert (seen[failed].state, seen[failed].exit_code) == (PilotJobState.FAILED, 7)
    assert (seen[killed].state, seen[killed].exit_code) == (PilotJobState.FAILED, None)
    assert "no exit code" in seen[killed].reason
    assert seen[running].state is PilotJobState.RUNNING
    assert isinstance(element, HasOutput)
    assert element.fetch(failed) == b"why\n"
    assert element.fetch(failed, tail_bytes=2) == b"y\n"
    assert element.cancel([failed]) == {failed: Outcome.ALREADY_OVER}
    assert isinstance(element, Purgeable)
    assert element.purge([*ended, running]) == {
        **dict.fromkeys(ended, Outcome.ACCEPTED),
        running: Outcome.STILL_RUNNING,
    }
    assert [rig.path(tag).exists() for tag in ("good", "bad", "killed", "sleeps")] == [False, False, False, True]
    assert element.status([failed])[failed].state is PilotJobState.UNKNOWN


def test_cancel_ends_pilots_and_a_repeat_ends_by_force_what_hears_nothing(rig: GramRig) -> None:
    deaf = rig.element("trap '' TERM; echo deaf; while :; do sleep 1; done\n").submit(batch("k", 1)).handles[1]
    element = rig.element(SLEEP)
    handles = list(element.submit(batch("c", 1, 2)).handles.values())
    until(lambda: states(element.status([deaf, *handles])) == {PilotJobState.RUNNING}, 60)
    log = rig.path("k/0/pilot.log")
    until(lambda: log.exists() and log.read_bytes() == b"deaf\n")
    assert set(element.cancel([deaf, *handles]).values()) == {Outcome.ACCEPTED}
    until(lambda: states(rig.element(SLEEP).status(handles)) == {PilotJobState.CANCELLED}, 60)
    outcomes = rig.element(SLEEP).cancel([deaf, *handles])
    assert outcomes == {deaf: Outcome.ACCEPTED, **dict.fromkeys(handles, Outcome.ALREADY_OVER)}
    assert await_state(element, deaf, PilotJobState.CANCELLED).exit_code is None


def test_modes_secrets_and_what_a_pilot_sees(rig: GramRig) -> None:
    """While the batch waits for the lock at the CE, its data lies there: in a home that others may enter.

    Its PilotID is its own here: what was killed by force keeps its secret until it is purged.
    """
    rig.path("").mkdir(parents=True, exist_ok=True)
    (rig.path("") / ".submit.lock").touch()
    rig.site.node.path(Path("/home/pilot")).chmod(0o755)
    rig.gram.root("chown", "-R", "pilot:pilot", "/home/pilot")
    element = rig.element("cat /proc/self/environ pilot.json; id -un; stat -c %a . pilot.json; " + SLEEP)
    packed = element._pack(batch("s", 77), remote.identity([77]))
    with (rig.path("") / ".submit.lock").open("r+") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        submission = pool.submit(element.submit, batch("s", 77))
        until(lambda: bool(rig.files_with(packed)), 60)
        for path in rig.files_with(packed):
            assert any(parent.stat().st_mode & 0o077 == 0 for parent in path.parents), path
        fcntl.flock(lock, fcntl.LOCK_UN)
        handle = submission.result().handles[77]
    log = rig.path("s/0/pilot.log")
    until(lambda: log.exists() and log.read_bytes().endswith(b"pilot\n700\n600\n"), 60)
    shown = element.fetch(handle)
    assert b'"proxy": "/home/pilot/.globus/job/' in shown
    assert b"X509_USER_PROXY" not in shown
    assert b"token-of-77" not in subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, check=True).stdout
    assert rig.files_with(b"token-of-77") == [rig.path("s/0/pilot.json"), log]


def test_more_than_max_pilots_is_throttled_and_starts_nothing(rig: GramRig) -> None:
    small = rig.element(SLEEP, max_pilots=2)
    with pytest.raises(ThrottledError, match="max_pilots") as caught:
        small.submit(batch("m", *range(90)))
    assert caught.value.retry_after_s
    assert small.find("m") == {}
    assert not rig.path("m").exists()
    with pytest.raises(InvalidDescriptionError, match="limit"):
        small.submit(batch("too-many", *range(101)))
