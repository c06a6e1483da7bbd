"""Which lane a pilot is served from, and why not from another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airpanda.jobs.lanes import Lane, Shape
from airpanda.jobs.matching import (
    Candidate,
    Lack,
    Offered,
    Refusal,
    Rules,
    Share,
    Usage,
    ban_of,
    ranked,
    refusal,
    room,
    user_priority,
)

SHAPE = Shape(1000, 1, 1000, 1000, 3600, (), "")
OFFER = Offered(4, 8000, 8000, 7200, frozenset({"cvmfs"}), frozenset(), "/CN=pilot")


def lane(number: int = 1, owner: str = "alice", vo: str = "atlas", **shape: Any) -> Lane:
    dn = f"/CN={owner}"
    return Lane(number, "DEMO", owner, dn, (f"/{vo}/Role=NULL",), "/CN=pilot", replace(SHAPE, **shape))


def candidate(number: int, *, age: int = 0, retry: bool = False, **changes: Any) -> Candidate:
    return Candidate(lane(number, **changes), retry, (age or number, 1))


def order(candidates: list[Candidate], rules: Rules | None = None, usage: Usage | None = None, **how: Any) -> list[int]:
    return [each.lane.lane_id for each in ranked(candidates, rules or Rules(), usage or Usage(), **how)]


@pytest.mark.parametrize(
    ("changes", "lack"),
    [
        ({"cores": 5}, Lack.CORES),
        ({"memory_mib": 8001}, Lack.MEMORY),
        ({"disk_mib": 8001}, Lack.DISK),
        ({"walltime_s": 7201}, Lack.TIME),
        ({"features": ("gpu",)}, Lack.FEATURES),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], lack: Lack) -> None:
    found = refusal(lane(**changes), OFFER)
    assert found is not None
    assert found.lack is lack
    assert refusal(lane(cores=4, memory_mib=8000, disk_mib=8000, walltime_s=7200, features=("cvmfs",)), OFFER) is None


def test_retriever_and_avoided_owner() -> None:
    assert refusal(lane(), replace(OFFER, retriever_dn="/CN=other")) == Refusal(
        Lack.RETRIEVER, "/CN=pilot", "/CN=other"
    )
    assert refusal(lane(), replace(OFFER, retriever_dn=None)) is None
    assert refusal(lane(), replace(OFFER, avoid_owners=frozenset({"/CN=alice"}))) == Refusal(Lack.AVOIDED, "/CN=alice")


def test_a_ban_names_whole_components() -> None:
    assert ban_of(lane(), Rules(banned_dns={"/CN=alice": "stolen key"})) is not None
    assert ban_of(lane(), Rules(banned_fqans={"/atlas": "x"})) is not None
    assert ban_of(lane(), Rules(banned_fqans={"/atl": "x", "/atlas/Role": "x"})) is None


def test_every_sentence_can_be_said() -> None:
    for lack in Lack:
        assert "{" not in str(Refusal(lack, ("a", "b"), frozenset({"c"})))


def test_priority_then_retries_then_age() -> None:
    some = [candidate(1), candidate(2, priority=2000), candidate(3, retry=True, age=9), candidate(4, age=1)]
    assert order(some) == [2, 3, 1, 4] or order(some) == [2, 3, 4, 1]
    assert order(some, by_age=True)[-1] == 3


def test_the_500th_job_is_100_lower() -> None:
    assert user_priority(1000, 500, 0.0) == 900
    usage = Usage()
    usage.add(lane(owner="alice"), 500)
    assert order([candidate(1, owner="alice", priority=1099), candidate(2, owner="bob")], usage=usage) == [2, 1]


def test_the_organisation_furthest_below_its_share_comes_first() -> None:
    usage = Usage()
    usage.add(lane(vo="atlas"), 60)
    usage.add(lane(vo="cms", owner="carol"), 40)
    some = [candidate(1, vo="atlas"), candidate(2, vo="cms", owner="carol")]
    assert order(some, usage=usage) == [2, 1]
    rules = Rules(shares={("vo", "atlas"): Share(weight=3.0)})
    assert order(some, rules, usage) == [1, 2]


def test_shares_hold_in_the_long_run() -> None:
    """Weights 3 : 1 between organisations, equal owners: what is given out over time."""
    rules, usage = Rules(shares={("vo", "atlas"): Share(weight=3.0)}), Usage()
    some = [candidate(1), candidate(2, owner="bob"), candidate(3, vo="cms", owner="carol")]
    for _ in range(400):
        usage.add(ranked(some, rules, usage)[0].lane, 1)
    assert usage.jobs[("atlas",)] == pytest.approx(300, abs=2)
    assert usage.jobs[("atlas", "", "alice")] == pytest.approx(150, abs=10)


def test_nobody_starves() -> None:
    """A low priority is served by the choices that go by age."""
    some = [candidate(1, age=1, priority=-1000), candidate(2, age=2, priority=5000)]
    assert order(some) == [2, 1]
    assert order(some, by_age=True) == [1, 2]


def test_caps_leave_what_is_left() -> None:
    rules = Rules(shares={("owner", "*"): Share(max_jobs=10, max_cores=16)})
    usage = Usage()
    usage.add(lane(), 8)
    assert room(lane(), rules, usage, 5) == 2
    assert room(lane(cores=4), rules, usage, 5) == 2
    assert room(lane(owner="bob", cores=8), rules, usage, 5) == 2
    usage.add(lane(), 2)
    assert room(lane(), rules, usage, 1) == Refusal(Lack.CAP_JOBS, "alice", 10)
    assert room(lane(owner="bob", cores=32), rules, usage, 1) == Refusal(Lack.CAP_CORES, "bob", 16)


@pytest.mark.parametrize(
    ("kind", "name", "who"),
    [
        ("working_group", "higgs", "working group higgs of organisation atlas"),
        ("working_group", "*", "working group higgs of organisation atlas"),
        ("vo", "atlas", "organisation atlas"),
        ("vo", "*", "organisation atlas"),
    ],
)
def test_caps_of_groups_and_organisations(kind: str, name: str, who: str) -> None:
    usage, mine = Usage(), lane(working_group="higgs")
    usage.add(mine, 3)
    jobs, cores = (Rules(shares={(kind, name): cap}) for cap in (Share(max_jobs=5), Share(max_cores=4)))
    assert (room(mine, jobs, usage, 9), room(mine, cores, usage, 9)) == (2, 1)
    assert room(lane(owner="bob", working_group="higgs", cores=2), cores, usage, 9) == Refusal(Lack.CAP_CORES, who, 4)
    usage.add(lane(owner="bob", working_group="higgs"), 2)
    assert room(mine, jobs, usage, 9) == Refusal(Lack.CAP_JOBS, who, 5)
    assert room(lane(vo="cms", working_group="higgs"), jobs, usage, 9) == (5 if name in ("higgs", "*") else 9)


def test_the_narrowest_cap_counts_and_an_owners_is_named_first() -> None:
    shares = {("owner", "alice"): Share(max_jobs=7), ("working_group", ""): Share(max_jobs=6), ("vo", "atlas"): Share()}
    usage = Usage()
    assert room(lane(), Rules(shares=shares), usage, 9) == 6
    usage.add(lane(), 6)
    refused = room(lane(), Rules(shares=shares), usage, 9)
    assert str(refused).startswith("jobs of organisation atlas without a working group may have 6 jobs with pilots")
    usage.add(lane(vo="cms"), 1)
    assert room(lane(), Rules(shares=shares), usage, 9) == Refusal(Lack.CAP_JOBS, "alice", 7)
    assert room(
        lane(vo="", owner="bob", working_group="x"), Rules(shares={("vo", ""): Share(max_cores=0)}), usage, 9
    ) == Refusal(Lack.CAP_CORES, "jobs without an organisation", 0)
