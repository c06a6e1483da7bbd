"""Whose jobs a pilot goes on taking, and when its node is bad."""

from __future__ import annotations

import pytest

from airpanda.pilot import errors, trust
from airpanda.pilot.errors import JobFault, Kind
from airpanda.pilot.room import Room
from airpanda.pilot.trust import Trust, Verdict
from airpanda.pilot.wire import Spec


def fault(kind: Kind) -> JobFault:
    return JobFault(kind, "why")


@pytest.mark.parametrize("kind", errors.THE_NODES_OWN)
def test_what_can_only_be_the_nodes_own_benches_at_once(kind: Kind) -> None:
    assert "why" in Trust().note(Verdict("a", fault=fault(kind)), 0.0)


@pytest.mark.parametrize("kind", [k for k in errors.HANDED_BACK if k not in errors.THE_NODES_OWN])
def test_one_owners_trouble_never_benches_however_often_it_comes(kind: Kind) -> None:
    seen = Trust()
    assert {seen.note(Verdict("a", fault=fault(kind)), float(i)) for i in range(50)} == {""}


def test_an_owner_is_left_alone_longer_and_longer_and_forgiven_by_a_start() -> None:
    seen, now = Trust(), 0.0
    pauses = []
    for _ in range(8):
        seen.note(Verdict("a", fault=fault(errors.MYPROXY_DOWN)), now)
        assert seen.avoided(now) == ["a"]
        until = now + next(s for s in range(1, 4000) if not Trust.avoided(seen, now + s))
        pauses.append(until - now)
        now = until
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (trust.FIRST_PAUSE_S, trust.MAX_PAUSE_S)
    seen.note(Verdict("a", ran=True), now)
    seen.note(Verdict("a", fault=fault(errors.MYPROXY_DOWN)), now)
    assert seen.avoided(now + trust.FIRST_PAUSE_S) == []


def test_different_owners_in_a_row_are_the_node_unless_one_payload_has_started() -> None:
    seen = Trust()
    for owner in ("a", "b"):
        assert seen.note(Verdict(owner, fault=fault(errors.GLEXEC)), 0.0) == ""
    assert "3 owners in a row" in seen.note(Verdict("c", fault=fault(errors.GLEXEC)), 0.0)
    seen = Trust()
    for owner in ("a", "b", "c", "d"):
        assert seen.note(Verdict(owner, fault=fault(errors.GLEXEC)), 0.0) == ""
        seen.note(Verdict("good", ran=True), 0.0)


def ended(owner: str, kind: Kind | None = errors.PAYLOAD, wall_s: float = 1.0) -> Verdict:
    return Verdict(owner, ran=True, failed=None if kind is None else fault(kind), wall_s=wall_s)


def test_a_node_on_which_everybodys_payload_fails_at_once_is_bad() -> None:
    seen = Trust()
    said = [seen.note(ended(owner, kind), 0.0) for owner, kind in zip("aab", [errors.PAYLOAD] * 3, strict=True)]
    assert said == ["", "", ""], "one person's payloads may fail as often as they like"
    assert "of 3 owners in a row have failed here at once" in seen.note(
        Verdict("c", failed=fault(errors.NOT_EXECUTABLE)), 0.0
    )


@pytest.mark.parametrize(
    "between",
    [ended("b", None), ended("b", wall_s=trust.SOON_S + 1)],
    ids=["one ends well", "one fails later"],
)
def test_who_finds_what_is_needed_speaks_for_the_node(between: Verdict) -> None:
    seen = Trust()
    for _ in range(5):
        assert [seen.note(each, 0.0) for each in (ended("a"), ended("c"), between)] == ["", "", ""]


def test_what_is_plainly_the_owners_says_nothing_of_the_node() -> None:
    seen = Trust()
    for owner in "abcdef":
        assert seen.note(Verdict(owner, ran=True, failed=None), 0.0) == ""
        assert seen.note(Verdict(owner), 0.0) == "", "its input does not exist, or a person has killed it"


def test_an_offer_names_no_more_owners_than_it_may() -> None:
    seen = Trust()
    for number in range(300):
        seen.note(Verdict(f"owner {number}", fault=fault(errors.MYPROXY_DOWN)), 0.0)
    assert len(seen.avoided(1.0)) == trust.MAX_AVOIDED


def spec(cores: int = 1, memory_mib: int = 10, disk_mib: int = 10) -> Spec:
    return Spec((), {}, {}, (), (), 60, memory_mib, disk_mib, cores)


def test_room_says_what_is_lacking_and_never_less_than_nothing() -> None:
    room = Room(2, 20, 20)
    assert room.lacks(spec()) == ""
    assert room.lacks(spec(cores=3, disk_mib=21)) == "3 cores of 2, 21 MiB of disk of 20"
    left = room.without(spec()).without(spec()).without(spec())
    assert left.is_any is False
    assert left.lacks(spec()) == "1 cores of 0, 10 MiB of memory of 0, 10 MiB of disk of 0"
    assert room.at_most(-5).is_any is False
