"""Lanes: which jobs are the same to every pilot, and how few lanes many different jobs get."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from airpanda.jobs.lanes import MAX_SHAPES, Shape, gathered, shape_of, shapes_of, vo_of
from airpanda.messages import JobSpec

NUMBERS = ("priority", "cores", "memory_mib", "disk_mib", "walltime_s")
PLAIN = Shape(1000, 1, 1000, 1000, 3600, (), "")
shapes = st.builds(
    Shape,
    priority=st.integers(-100, 5000),
    cores=st.integers(1, 64),
    memory_mib=st.integers(1, 64_000),
    disk_mib=st.integers(1, 64_000),
    walltime_s=st.integers(1, 86_400),
    features=st.sampled_from([(), ("cvmfs",), ("cvmfs", "gpu")]),
    working_group=st.sampled_from(["", "higgs"]),
)


def test_few_shapes_stay_as_they_are() -> None:
    some = {replace(PLAIN, priority=n) for n in range(MAX_SHAPES)}
    assert gathered(some) == {shape: shape for shape in some}


@given(st.lists(shapes, min_size=1, max_size=400))
def test_gathered_shapes_ask_for_no_less_and_never_for_more_than_a_slot_that_fits_all(wanted: list[Shape]) -> None:
    found = gathered(wanted)
    assert found.keys() == set(wanted)
    for shape, by in found.items():
        assert (shape.features, shape.working_group) == (by.features, by.working_group)
        assert all(getattr(by, name) >= getattr(shape, name) for name in NUMBERS)
        assert all(getattr(by, name) <= max(getattr(each, name) for each in wanted) for name in NUMBERS)
    kinds = len({(shape.features, shape.working_group) for shape in wanted})
    assert len(set(found.values())) <= MAX_SHAPES * kinds


def test_a_hundred_thousand_priorities_are_few_lanes_in_the_same_order() -> None:
    found = gathered(replace(PLAIN, priority=n) for n in range(100_000))
    assert len(set(found.values())) <= MAX_SHAPES
    assert found[replace(PLAIN, priority=0)].priority < found[replace(PLAIN, priority=99_999)].priority


@given(
    st.lists(
        st.tuples(st.integers(1, 2), st.lists(st.sampled_from(["a", "b"]), max_size=3), st.sampled_from(["", "a", "b"]))
    )
)
def test_shapes_of_many_are_those_of_each(asked: list[tuple[int, list[str], str]]) -> None:
    jobs = [
        JobSpec(job_name="j", argv=["true"], cores=cores, features=features, working_group=group)
        for cores, features, group in asked
    ]
    assert shapes_of(jobs) == [shape_of(job) for job in jobs]


def test_features_are_a_set() -> None:
    job = JobSpec(job_name="j", argv=["true"], features=["gpu", "cvmfs", "gpu"])
    assert shape_of(job).features == ("cvmfs", "gpu")


def test_the_organisation_is_the_first_component() -> None:
    assert vo_of(["/atlas/higgs/Role=production", "/cms"]) == "atlas"
    assert vo_of([]) == ""
