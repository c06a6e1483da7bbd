"""The limits of a payload, and the watch that holds measurements against them."""

from __future__ import annotations

from typing import Any

import pytest

from airpanda.core.errors import IdentitySwitchError
from airpanda.glexec.ports import Usage
from airpanda.pilot.errors import JobFault
from airpanda.pilot.limits import Limits, Scan
from airpanda.pilot.watch import Watch

MIB = GIB_KIB = 1024 * 1024
LIMITS = Limits(walltime_s=100, memory_mib=1000, disk_mib=100, looping_s=60)


def test_what_is_over_a_limit_is_named_with_code_and_blame() -> None:
    faults = (
        (LIMITS.time(100.1), 1213, "user"),
        (LIMITS.memory(2001), 1212, "user"),
        (LIMITS.disk(Scan(121 * MIB, 3, 0.0)), 1104, "user"),
        (LIMITS.node(255), 1098, "site"),
        (LIMITS.silence(60.1), 1150, "user"),
    )
    for fault, code, blame in faults:
        assert fault is not None
        assert (fault.kind.code, fault.kind.blame) == (code, blame)


def test_at_a_limit_nothing_happens() -> None:
    assert LIMITS.time(100) is None
    assert LIMITS.memory(2000) is None
    assert LIMITS.disk(Scan(120 * MIB, 3, 0.0)) is None
    assert LIMITS.node(256) is None
    assert LIMITS.silence(60) is None


class World:
    """What a watch sees, and the clock it sees it by."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now, self.cpu_s, self.rss_kib, self.printed, self.free = 1000.0, 0.0, 0, 0, 100_000
        self.scan: Scan | Exception = Scan(0, 0, 0.0)
        self.scans = self.looks = self.moved = 0
        self.spent_s = self.look_costs_s = 0.0
        self.largest_kib = 0
        self.pss_kib: int | None = None
        self.pss_at: float | None = None
        self.watch = Watch(
            self,  # type: ignore[arg-type]
            limits,
            printed=lambda: self.printed,
            scan=self.look,
            free_mib=lambda: self.free,
            scan_every_s=30,
            clock=lambda: self.now,
            cpu_clock=lambda: self.spent_s,
        )

    def usage(self) -> Usage:
        self.looks += 1
        self.spent_s += self.look_costs_s
        shared = {"largest_kib": self.largest_kib, "pss_kib": self.pss_kib, "pss_at": self.pss_at}
        return Usage(self.cpu_s, self.rss_kib, 4, self.moved, 2 * self.moved, **shared)  # type: ignore[arg-type]

    def look(self) -> Scan:
        self.scans += 1
        if isinstance(self.scan, Exception):
            raise self.scan
        return self.scan

    def after(self, seconds: float) -> int:
        """The code of the fault after this time, or 0."""
        codes = self.all_after(seconds)
        assert len(codes) <= 1
        return codes[0] if codes else 0

    def all_after(self, seconds: float) -> list[int]:
        return [fault.kind.code for fault in self.faults_after(seconds)]

    def faults_after(self, seconds: float) -> list[JobFault]:
        self.now += seconds
        return self.watch.faults()


@pytest.fixture
def world() -> World:
    return World()


def test_a_silent_payload_is_stopped_after_the_limit_and_not_before(world: World) -> None:
    assert world.after(5) == 0
    assert world.after(55) == 0
    assert world.after(10) == 1150


@pytest.mark.parametrize("sign", ["cpu", "print", "file"])
def test_each_sign_of_life_starts_the_wait_anew(sign: str) -> None:
    world = World(Limits(walltime_s=1000, memory_mib=1000, disk_mib=100, looping_s=60))
    for step in range(1, 8):
        world.cpu_s = 2.0 * step if sign == "cpu" else 0.0
        world.printed = step if sign == "print" else 0
        world.scan = Scan(0, 1, float(step)) if sign == "file" else Scan(0, 1, 0.0)
        assert world.after(40) == 0
    assert world.after(61) == 1150


def test_a_trickle_of_cpu_is_no_progress(world: World) -> None:
    codes = []
    for _ in range(14):
        world.cpu_s += 0.01
        codes.append(world.after(5))
    assert 1150 in codes


def test_a_disk_that_fills_fast_is_looked_at_at_once(world: World) -> None:
    world.scan = Scan(500 * MIB, 1, 1.0)
    assert world.after(3) == 0
    assert world.scans == 0
    world.free -= 30
    assert world.after(3) == 1104
    assert world.scans == 1


def test_a_full_node_is_the_sites_unless_this_payload_filled_it(world: World) -> None:
    world.free = 10
    world.scan = Scan(10 * MIB, 1, 1.0)
    assert world.after(3) == 1098
    world.scan = Scan(500 * MIB, 1, 1.0)
    assert world.after(3) == 1104


def test_a_sandbox_that_cannot_be_measured_stops_nobody(world: World) -> None:
    world.scan = IdentitySwitchError("refused")
    assert world.after(31) == 0
    assert world.scans == 1
    assert world.after(3) == 0
    assert world.scans == 1, "not again at once"


def test_a_look_that_costs_much_is_followed_by_a_long_pause(world: World) -> None:
    """A payload of thousands of processes must not make its watch a burden: a hundredth of a core at most."""
    world.look_costs_s, world.rss_kib = 0.5, 3 * 1024 * 1024
    assert world.after(3) == 1212
    world.rss_kib = 0
    assert world.after(3) == 0
    assert world.looks == 1
    assert world.after(47) == 0
    assert world.looks == 2


@pytest.fixture
def crowd() -> World:
    """Many processes whose resident memory is over the limit together, with hours of time."""
    world = World(Limits(walltime_s=36000, memory_mib=1000, disk_mib=100, looping_s=36000))
    world.rss_kib, world.largest_kib, world.pss_at = 3 * GIB_KIB, GIB_KIB, 0.0
    return world


def test_memory_that_processes_share_is_not_held_against_them(crowd: World) -> None:
    """The first look at what is shared that comes after the doubt decides, and each later one anew."""
    crowd.pss_kib, crowd.pss_at = GIB_KIB, crowd.now
    assert crowd.after(3) == 0, "that look was before the doubt"
    for _ in range(100):
        crowd.pss_at = crowd.now
        assert crowd.after(60) == 0
    crowd.pss_kib = 2001 * 1024
    (fault,) = crowd.faults_after(3)
    assert fault.kind.code == 1212
    assert "2001 MiB (what processes share counts once), 1000 asked for" in str(fault)


def test_a_better_look_at_memory_is_waited_for_but_not_for_ever(crowd: World) -> None:
    assert [crowd.after(10) for _ in range(18)] == [0] * 18
    crowd.rss_kib = 0
    assert crowd.after(10) == 0
    crowd.rss_kib = 3 * GIB_KIB
    assert [crowd.after(10) for _ in range(18)] == [0] * 18, "a doubt that has passed begins anew"
    (fault,) = crowd.faults_after(10)
    assert "3072 MiB (resident, what processes share counts for each)" in str(fault)


def test_a_look_at_what_is_shared_grows_old(crowd: World) -> None:
    """One good look must not lift the limit for the rest of the payload's life when no other look follows."""
    assert crowd.after(3) == 0
    crowd.pss_kib, crowd.pss_at = GIB_KIB, crowd.now
    crowd.rss_kib = 30 * GIB_KIB
    assert [crowd.after(60) for _ in range(3)] == [0, 0, 0]
    (fault,) = crowd.faults_after(60)
    assert "resident" in str(fault)


@pytest.mark.parametrize("known", [{"pss_at": None}, {"largest_kib": 3 * GIB_KIB}], ids=["nobody looks", "one process"])
def test_where_no_look_can_change_anything_none_is_waited_for(crowd: World, known: dict[str, Any]) -> None:
    for name, value in known.items():
        setattr(crowd, name, value)
    assert crowd.after(3) == 1212


def test_what_is_measured_becomes_samples(world: World) -> None:
    world.scan = Scan(3 * MIB, 1, 1.0)
    for step in range(1, 12):
        world.cpu_s, world.rss_kib, world.moved = float(step), 2048 * step, step * MIB
        world.after(1)
    kept = world.watch.samples.all
    assert [sample["at_s"] for sample in kept] == [1, 3, 5, 7, 9, 11]
    assert kept[0] == {
        "at_s": 1, "cpu_s": 1, "rss_mib": 2, "read_mib": 1, "written_mib": 2, "disk_mib": 0, "processes": 4
    }  # fmt: skip
    assert world.watch.cpu_s == 11
    assert world.after(20) == 0
    assert world.after(3) == 0
    assert kept[-1]["disk_mib"] == 3, "the sandbox was looked into in between"


def test_every_limit_that_is_exceeded_is_told(world: World) -> None:
    world.rss_kib, world.scan = 3 * 1024 * 1024, Scan(500 * MIB, 1, 1.0)
    assert world.all_after(101) == [1213, 1212, 1104]
    world.free = 10
    assert world.all_after(10) == [1213, 1212, 1104], "a node that this payload has filled is not its victim"
    world.scan = Scan(0, 1, 1.0)
    assert world.all_after(161) == [1213, 1212, 1098, 1150]


def test_after_a_bad_end_the_disk_is_looked_at_where_it_may_be_the_reason(world: World) -> None:
    world.scan = Scan(500 * MIB, 1, 1.0)
    assert world.watch.afterwards() == []
    assert world.scans == 0, "it has room: there is nothing to be looked for"
    world.free -= 30
    assert [fault.kind.code for fault in world.watch.afterwards()] == [1104]
    world.free, world.scan = 10, Scan(0, 1, 1.0)
    assert [fault.kind.code for fault in world.watch.afterwards()] == [1098]
