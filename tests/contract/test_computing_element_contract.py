"""One behavioural suite over every back-end of the port ``ComputingElement``.

Each back-end gives a fixture that makes elements whose pilots run a short shell script.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.elements import (
    SLEEP,
    batch,
    queue_of,
    refuses_handles_of_another_kind,
    runs_is_found_and_adopted,
    states,
    tells_how_pilots_ended,
    tells_unknown_from_failure,
    until,
)

from airpanda.computing.elements import (
    CEUnavailableError,
    Handle,
    InvalidDescriptionError,
    Load,
    Outcome,
    PilotBatch,
    PilotJobState,
    ReportsLoad,
    Status,
    ThrottledError,
    make_element,
)
from airpanda.computing.local import LocalElement
from airpanda.computing.queues import PandaQueue

Make = Callable[[str], LocalElement]


@pytest.fixture
def queue(open_path: Path) -> PandaQueue:
    account = "nobody" if os.geteuid() == 0 else ""
    return queue_of("local", {"directory": f"{open_path}/pilots", "account": account, "max_pilots": 120})


@pytest.fixture
def make(queue: PandaQueue) -> Iterator[Make]:
    made: list[LocalElement] = []

    def factory(wrapper: str) -> LocalElement:
        made.append(LocalElement(queue, wrapper, grace_s=0.0))
        return made[-1]

    yield factory
    directory = Path(queue.ce.directory)
    handles = (
        [Handle(p.name) for p in directory.iterdir() if (p / "handle.json").exists()] if directory.exists() else []
    )
    if handles:
        made[0].cancel(handles)
        time.sleep(0.05)
        made[0].cancel(handles)
        until(lambda: all(s.state is not PilotJobState.RUNNING for s in made[0].status(handles).values()))


def test_a_bad_tag_and_an_empty_batch_are_refused() -> None:
    with pytest.raises(InvalidDescriptionError, match="tag"):
        batch("../../etc", 1)
    with pytest.raises(InvalidDescriptionError, match="at least one"):
        PilotBatch("t", {})


def test_a_handle_of_another_kind_is_refused_before_it_travels(make: Make) -> None:
    refuses_handles_of_another_kind(make(SLEEP), ("../../root-1", "x", "t-1/..", "t-1\n"))


def test_unknown_handles_and_tags_are_told_apart_from_failures(make: Make) -> None:
    tells_unknown_from_failure(make(SLEEP), Handle("never-1"))


def test_three_thousand_handles_in_one_call(make: Make) -> None:
    handles = [Handle(f"some-tag-{number}") for number in range(3000)]
    assert states(make(SLEEP).status(handles)) == {PilotJobState.UNKNOWN}


def test_the_load_is_what_runs_and_what_may_still_come(make: Make) -> None:
    element = make(SLEEP)
    assert isinstance(element, ReportsLoad)
    assert element.load() == Load(queued=0, running=0, free=120)
    handles = list(element.submit(batch("load", 1, 2, 3)).handles.values())
    element.submit(batch("another", 1))
    assert element.load() == Load(queued=0, running=4, free=116)
    element.cancel(handles)
    until(lambda: element.load() == Load(queued=0, running=1, free=119))


def test_a_node_that_cannot_be_reached_is_unavailable(queue: PandaQueue) -> None:
    gone = replace(queue, ce=replace(queue.ce, enter=("/nonexistent/enter",)))
    with pytest.raises(CEUnavailableError, match="cannot be reached"):
        LocalElement(gone, SLEEP).find("t")
    with pytest.raises(InvalidDescriptionError, match="wrapper"):
        make_element(queue, Path("/nonexistent/wrapper.sh"))


def test_more_than_max_pilots_is_throttled_and_starts_nothing(queue: PandaQueue) -> None:
    small = LocalElement(replace(queue, ce=replace(queue.ce, max_pilots=2)), SLEEP)
    with pytest.raises(ThrottledError, match="max_pilots") as caught:
        small.submit(batch("many", 1, 2, 3))
    assert caught.value.retry_after_s
    assert small.find("many") == {}


def test_a_batch_runs_is_found_and_a_repeat_adopts(make: Make) -> None:
    runs_is_found_and_adopted(lambda: make(SLEEP), "t-a", "t")


def test_exit_codes_become_states(make: Make) -> None:
    element, done, _ = tells_how_pilots_ended(make)
    assert element.status([done])[done] == Status(PilotJobState.DONE, 0)


def test_cancel_ends_and_a_repeat_is_no_error(make: Make) -> None:
    element = make(SLEEP)
    handle = element.submit(batch("c", 1)).handles[1]
    assert element.cancel([handle]) == {handle: Outcome.ACCEPTED}
    until(lambda: element.status([handle])[handle].state is PilotJobState.CANCELLED)
    assert element.cancel([handle]) == {handle: Outcome.ALREADY_OVER}


def test_a_cancel_repeated_after_the_grace_time_kills(make: Make) -> None:
    element = make("trap '' TERM; echo ready; while :; do sleep 1; done\n")
    handle = element.submit(batch("k", 1)).handles[1]
    until(lambda: element.fetch(handle) == b"ready\n")
    element.cancel([handle])
    time.sleep(0.1)
    assert element.status([handle])[handle].state is PilotJobState.RUNNING
    element.cancel([handle])
    until(lambda: element.status([handle])[handle].state is PilotJobState.CANCELLED)


def test_a_pilot_that_was_killed_is_lost_not_done(make: Make, queue: PandaQueue) -> None:
    element = make("kill -9 $PPID; exit 0\n")
    handle = element.submit(batch("l", 1)).handles[1]
    until(lambda: element.status([handle])[handle].state is PilotJobState.LOST)
    assert "exit code" in element.status([handle])[handle].reason


def test_purge_keeps_what_runs_and_removes_what_ended(make: Make) -> None:
    element = make(SLEEP)
    handle = element.submit(batch("p", 1)).handles[1]
    assert element.purge([handle]) == {handle: Outcome.STILL_RUNNING}
    element.cancel([handle])
    until(lambda: element.status([handle])[handle].state.is_final)
    assert element.purge([handle]) == {handle: Outcome.ACCEPTED}
    assert element.status([handle])[handle].state is PilotJobState.UNKNOWN


def test_what_ended_two_days_ago_goes_with_the_next_submission(make: Make, queue: PandaQueue) -> None:
    """Nobody purges a pilot that has ended well. What runs, ended lately, is asked for again or is no pilot's stays."""
    directory = Path(queue.ce.directory)
    ended, running = make("exit 0\n"), make(SLEEP)
    old, kept, repeated = (ended.submit(batch(tag, 1)).handles[1] for tag in ("old", "kept", "repeated"))
    long = running.submit(batch("long", 1)).handles[1]
    until(lambda: all(s.state.is_final for s in ended.status([old, kept, repeated]).values()))
    foreign = directory / "sandbox-7"
    foreign.mkdir()
    ago = time.time() - 2 * 86400 - 60
    for name in (old, repeated, long, foreign.name):
        os.utime(directory / name, (ago, ago))
    assert ended.submit(batch("repeated", 1)).adopted == {1}
    assert not (directory / old).exists()
    assert all((directory / name).is_dir() for name in (kept, repeated, long, foreign.name))
    assert running.status([long])[long].state is PilotJobState.RUNNING
    foreign.rmdir()


def test_modes_and_secrets(make: Make, queue: PandaQueue) -> None:
    element = make("cat /proc/self/environ; " + SLEEP)
    handle = element.submit(batch("s", 1)).handles[1]
    place = Path(queue.ce.directory) / handle
    assert place.stat().st_mode & 0o777 == 0o700
    until(lambda: bool(element.fetch(handle)))
    for path in place.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert "token-of-1" in (place / "pilot.json").read_text()
    assert b"token-of-1" not in element.fetch(handle)
    shown = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, check=True).stdout
    assert b"token-of-1" not in shown
    element.cancel([handle])
    until(lambda: element.status([handle])[handle].state.is_final)
    assert not (place / "pilot.json").exists()


def test_one_call_starts_a_hundred(make: Make) -> None:
    element = make(SLEEP)
    submission = element.submit(batch("hundred", *range(1, 101)))
    assert len(submission.handles) == 100
    assert states(element.status(list(submission.handles.values()))) == {PilotJobState.RUNNING}


@pytest.mark.root
def test_pilots_are_processes_of_the_account_with_its_groups_and_their_own_session(
    make: Make, queue: PandaQueue
) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: this needs root")
    element = make("grep -E '^(Uid|Groups|NoNewPrivs)' /proc/self/status; " + SLEEP)
    handle = element.submit(batch("who", 1)).handles[1]
    until(lambda: b"NoNewPrivs" in element.fetch(handle))
    shown = element.fetch(handle).decode()
    assert "65534\t65534\t65534\t65534" in shown
    assert "NoNewPrivs:\t0" in shown
    assert "Groups:\t65534" in shown
    with pytest.raises(InvalidDescriptionError, match="root"):
        LocalElement(replace(queue, ce=replace(queue.ce, account="")), SLEEP).find("x")


def test_an_agent_killed_at_any_moment_leaves_exactly_one_pilot(make: Make, open_path: Path, queue: PandaQueue) -> None:
    """The submitting task is killed at random points; the repeat adopts or starts, and each pilot runs once."""
    marks = open_path / "marks"
    marks.mkdir(mode=0o777)
    marks.chmod(0o777)
    script = f"echo x >> {marks}/$(basename $PWD); {SLEEP}"
    for round_number in range(8):
        tag = f"crash{round_number}"
        pid = os.fork()
        if pid == 0:
            try:
                LocalElement(queue, script).submit(batch(tag, 1, 2, 3))
            finally:
                os._exit(0)
        time.sleep(0.02 + 0.02 * round_number)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        make(script).submit(batch(tag, 1, 2, 3))
        for pilot in (1, 2, 3):
            until(lambda path=marks / f"{tag}-{pilot}": path.exists())  # type: ignore[misc]
    time.sleep(0.2)
    assert sorted(path.read_text() for path in marks.iterdir()) == ["x\n"] * 24
