"""The contract of ``ComputingElement`` over a real GRAM5 CE: gatekeeper, job manager and its fork back-end."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.elements import (
    SLEEP,
    await_state,
    batch,
    purges_what_ended,
    refuses_handles_of_another_kind,
    refuses_other_pilots,
    runs_is_found_and_adopted,
    states,
    tells_how_pilots_ended,
    tells_unknown_from_failure,
    until,
)
from support.gram_rig import GramRig, make_gram_rig

from airpanda.computing import remote
from airpanda.computing.elements import (
    Handle,
    InvalidDescriptionError,
    ListsTags,
    Outcome,
    PilotJobState,
    ReportsLoad,
    ThrottledError,
)

pytestmark = [pytest.mark.root, pytest.mark.integration]
UNKNOWN = Handle("gram_0@never")


@pytest.fixture(scope="module", name="rig")
def module_rig() -> Iterator[GramRig]:
    yield from make_gram_rig()


@pytest.fixture(autouse=True)
def tidy(rig: GramRig) -> Iterator[None]:
    yield
    rig.tidy()


def test_a_handle_of_another_kind_is_refused_before_it_travels(rig: GramRig) -> None:
    handles = ("../../x_1@t", "gram_1@../t", "gram_1", "gram_x@t", "gram_1@t\n", "")
    refuses_handles_of_another_kind(rig.element(SLEEP), handles)


def test_unknown_handles_and_tags_are_told_apart_from_failures(rig: GramRig) -> None:
    tells_unknown_from_failure(rig.element(SLEEP), UNKNOWN)


def test_a_batch_runs_is_found_and_a_repeat_adopts(rig: GramRig) -> None:
    element, mine = runs_is_found_and_adopted(lambda: rig.element(SLEEP), "a", "a-")
    assert isinstance(element, ListsTags)
    tagged = rig.element(SLEEP).tagged("a")
    assert {tag: set(handles) for tag, handles in tagged.items()} == {
        "a": mine,
        "a-": {Handle("gram_0@a-")},
    }
    refuses_other_pilots(element, "a")
    assert isinstance(element, ReportsLoad)
    assert element.load().running >= 3


def test_ends_become_states_logs_can_be_read_and_purge_keeps_what_runs(rig: GramRig) -> None:
    killed = rig.element("kill -9 $(ps -o ppid= -p $PPID) $PPID\n").submit(batch("killed", 1)).handles[1]
    element, done, failed = tells_how_pilots_ended(rig.element)
    seen = await_state(element, killed, PilotJobState.FAILED)
    assert seen.exit_code is None
    assert "no exit code" in seen.reason
    running = rig.element(SLEEP).submit(batch("sleeps", 1)).handles[1]
    await_state(element, running, PilotJobState.RUNNING)
    purges_what_ended(element, [done, failed, killed], running)
    assert [rig.path(tag).exists() for tag in ("good", "bad", "killed", "sleeps")] == [False, False, False, True]
    assert element.status([failed])[failed].state is PilotJobState.UNKNOWN


def test_cancel_ends_pilots_and_a_repeat_ends_by_force_what_hears_nothing(rig: GramRig) -> None:
    deaf = rig.element("trap '' TERM; echo deaf; while :; do sleep 1; done\n").submit(batch("k", 1)).handles[1]
    element = rig.element(SLEEP)
    handles = list(element.submit(batch("c", 1, 2)).handles.values())
    until(lambda: states(element.status([deaf, *handles])) == {PilotJobState.RUNNING})
    log = rig.path("k/0/pilot.log")
    until(lambda: log.exists() and log.read_bytes() == b"deaf\n")
    assert set(element.cancel([deaf, *handles]).values()) == {Outcome.ACCEPTED}
    until(lambda: states(rig.element(SLEEP).status(handles)) == {PilotJobState.CANCELLED})
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
        until(lambda: bool(rig.files_with(packed)))
        for path in rig.files_with(packed):
            assert any(parent.stat().st_mode & 0o077 == 0 for parent in path.parents), path
        fcntl.flock(lock, fcntl.LOCK_UN)
        handle = submission.result().handles[77]
    log = rig.path("s/0/pilot.log")
    until(lambda: log.exists() and log.read_bytes().endswith(b"pilot\n700\n600\n"))
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
