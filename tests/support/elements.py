"""Pilots at a computing element: how tests make, await and read them, and what must hold for every back-end.

A test of the contract calls what stands here under "the contract" and adds what its back-end alone promises.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from airpanda.computing.elements import (
    ComputingElement,
    Handle,
    HasOutput,
    InvalidDescriptionError,
    NotFoundAtCEError,
    Outcome,
    PilotBatch,
    PilotJobState,
    Purgeable,
    Status,
    make_element,
)
from airpanda.computing.queues import PandaQueue, parse_queue
from airpanda.core.secret import Secret

SLEEP = "sleep 300 & wait $!\n"  # longer than any test looks at it
_MIXED = "is() { grep -q '\"pilot_id\": '$1, pilot.json; }\nis 4 && sleep 300\nis 2 && echo why && exit 7\nexit 0\n"
_QUEUE = """
[queue]
name = "TEST"
identity_policy = "NEVER"
[slot]
memory_mib = 1000
walltime_s = 600
[ce]
{ce}
[pilot]
code = "/nowhere"
dispatcher_url = "http://localhost:1"
ca_dir = "/nowhere"
proxy = "{proxy}"
"""
E = TypeVar("E", bound=ComputingElement)


def batch(tag: str, *pilots: int) -> PilotBatch:
    return PilotBatch(tag, {pilot: Secret(f"token-of-{pilot}") for pilot in pilots})


def until(look: Callable[[], bool], limit_s: float = 90.0) -> None:
    end = time.monotonic() + limit_s
    while not look():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.05)


def states(statuses: Mapping[Handle, Status]) -> set[PilotJobState]:
    return {status.state for status in statuses.values()}


def await_state(element: ComputingElement, handle: Handle, state: PilotJobState) -> Status:
    until(lambda: element.status([handle])[handle].state is state)
    return element.status([handle])[handle]


def log(element: HasOutput, handle: Handle) -> bytes:
    """What the pilot wrote; a CE may say RUNNING some moments before there is a log."""
    try:
        return element.fetch(handle)
    except NotFoundAtCEError:
        return b""


def queue_text(kind: str, ce: Mapping[str, object], *, proxy: str = "/nowhere") -> str:
    """A queue file with these keys of ``[ce]``."""
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in {"kind": kind, **ce}.items())
    return _QUEUE.format(ce=lines, proxy=proxy)


def queue_of(kind: str, ce: Mapping[str, object], *, proxy: str = "/nowhere") -> PandaQueue:
    return parse_queue(queue_text(kind, ce, proxy=proxy), "test.toml")


class Elements(Generic[E]):
    """Makes elements of one class whose pilots run a short script, and closes them."""

    def __init__(self, kind: type[E], scratch: Path) -> None:
        self._kind, self._scratch = kind, scratch
        self.made: list[E] = []

    def make(self, queue: PandaQueue, wrapper: str, **secret: Any) -> E:
        """A fresh one each time: nothing that a test sees may depend on what an object remembers."""
        file = self._scratch / "wrapper.sh"
        file.write_text(wrapper)
        element = make_element(queue, file, **secret)
        assert isinstance(element, self._kind)
        self.made.append(element)
        return element

    def close(self) -> None:
        for element in self.made:
            element.close()
        self.made.clear()


# --- the contract --------------------------------------------------------------------------------------------


def refuses_handles_of_another_kind(element: ComputingElement, handles: Sequence[str]) -> None:
    """Before anything travels."""
    calls: list[Callable[[list[Handle]], object]] = [element.status, element.cancel]
    if isinstance(element, Purgeable):
        calls.append(element.purge)
    if isinstance(element, HasOutput):
        fetch = element.fetch
        calls.append(lambda one: fetch(one[0]))
    for handle in handles:
        for call in calls:
            with pytest.raises(InvalidDescriptionError, match="no handle"):
                call([Handle(handle)])


def tells_unknown_from_failure(element: ComputingElement, unknown: Handle) -> None:
    assert element.status([unknown])[unknown].state is PilotJobState.UNKNOWN
    assert element.status([]) == {}
    assert element.find("never") == {}
    assert element.cancel([unknown]) == {unknown: Outcome.NOT_FOUND}
    if isinstance(element, Purgeable):
        assert element.purge([unknown]) == {unknown: Outcome.NOT_FOUND}
    if isinstance(element, HasOutput):
        with pytest.raises(NotFoundAtCEError):
            element.fetch(unknown)


def runs_is_found_and_adopted(make: Callable[[], E], tag: str, *others: str) -> tuple[E, set[Handle]]:
    """A batch of three; nothing is remembered in objects, and what has one of the other tags is another batch."""
    first = make().submit(batch(tag, 31, 30, 32))
    assert set(first.handles) == {30, 31, 32}
    assert not first.adopted
    element = make()
    again = element.submit(batch(tag, 30, 31, 32))
    assert again.handles == first.handles
    assert again.adopted == {30, 31, 32}
    until(lambda: states(element.find(tag)) == {PilotJobState.RUNNING})
    for other in others:
        assert not element.submit(batch(other, 1)).adopted
    assert set(element.find(tag)) == set(make().find(tag)) == set(first.handles.values())
    return element, set(first.handles.values())


def refuses_other_pilots(element: ComputingElement, tag: str) -> None:
    with pytest.raises(InvalidDescriptionError, match="other pilots"):
        element.submit(batch(tag, 30, 33))


def tells_how_pilots_ended(make: Callable[[str], E], suffix: str = "") -> tuple[E, Handle, Handle]:
    """One that is done and one that failed, with a log."""
    done = make("exit 0\n").submit(batch(f"good{suffix}", 1)).handles[1]
    element = make("echo why >&2; exit 7\n")
    failed = element.submit(batch(f"bad{suffix}", 2)).handles[2]
    until(lambda: all(status.state.is_final for status in element.status([done, failed]).values()))
    until(lambda: element.status([failed])[failed].exit_code == 7)
    seen = element.status([done, failed])
    assert (seen[done].state, seen[done].exit_code) == (PilotJobState.DONE, 0)
    assert seen[failed].state is PilotJobState.FAILED
    assert isinstance(element, HasOutput)
    assert element.fetch(failed) == b"why\n"
    assert element.fetch(failed, tail_bytes=2) == b"y\n"
    assert element.cancel([failed]) == {failed: Outcome.ALREADY_OVER}
    assert set(element.find(f"bad{suffix}")) == {failed}
    return element, done, failed


def ends_pilots_of_one_batch_apart(make: Callable[[str], E]) -> tuple[E, dict[int, Handle]]:
    """Of the pilots 1, 2 and 4 of the batch ``mixed`` the first is done, the second failed, and the last still runs."""
    element = make(_MIXED)
    handles = dict(element.submit(batch("mixed", 1, 2, 4)).handles)
    until(lambda: all(element.status([handles[p]])[handles[p]].state.is_final for p in (1, 2)))
    seen = element.status(list(handles.values()))
    assert (seen[handles[1]].state, seen[handles[1]].exit_code) == (PilotJobState.DONE, 0)
    assert (seen[handles[2]].state, seen[handles[2]].exit_code) == (PilotJobState.FAILED, 7)
    assert seen[handles[4]].state is PilotJobState.RUNNING
    return element, handles


def purges_what_ended(element: ComputingElement, ended: Sequence[Handle], running: Handle) -> None:
    assert isinstance(element, Purgeable)
    wanted = {**dict.fromkeys(ended, Outcome.ACCEPTED), running: Outcome.STILL_RUNNING}
    assert element.purge([*ended, running]) == wanted
    left = element.status([running])[running].state
    assert left is not PilotJobState.UNKNOWN
    assert not left.is_final
