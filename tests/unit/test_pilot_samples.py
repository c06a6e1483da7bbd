"""The time series of one payload: bounded, denser at its beginning, told once."""

from __future__ import annotations

import itertools

from airpanda.glexec.ports import Usage
from airpanda.pilot import wire
from airpanda.pilot.samples import Samples

HOUR, DAY = 3600, 86400


def measured(seconds: float, step_s: float = 2.0) -> Samples:
    samples, at_s = Samples(), 0.5
    while at_s < seconds:
        samples.note(at_s, Usage(0.0, 0), 0)
        at_s += step_s
    return samples


def test_their_number_is_bounded_however_long_a_payload_runs() -> None:
    numbers = {seconds: len(measured(seconds).all) for seconds in (60, HOUR, DAY, 30 * DAY)}
    assert numbers[60] == 30
    assert 200 < numbers[HOUR] < 300
    assert 400 < numbers[DAY] < 500
    assert numbers[30 * DAY] < 700


def test_the_distance_is_small_against_the_age() -> None:
    at = [sample["at_s"] for sample in measured(DAY).all]
    assert all(later - earlier <= max(2.0, later / 50) + 2.0 for earlier, later in itertools.pairwise(at))


def test_what_has_arrived_is_not_told_again_and_what_has_not_is() -> None:
    samples = measured(60)
    assert samples.untold(at_least=31) == []
    first = samples.untold(at_least=30)
    assert first == samples.untold() == samples.all, "nothing has arrived yet"
    samples.arrived(first[:10])
    assert samples.untold() == samples.all[10:]
    samples.arrived(first)
    samples.arrived(first[:3])
    samples.arrived([])
    assert samples.untold() == []
    samples.note(100.0, Usage(1.0, 1024, 2), 0)
    assert [sample["at_s"] for sample in samples.untold()] == [100.0]


def test_a_report_carries_as_many_as_it_may_and_the_next_one_the_rest() -> None:
    samples = measured(DAY)
    seen = []
    while part := samples.untold():
        assert len(part) <= wire.MAX_SAMPLES
        samples.arrived(part)
        seen += part
    assert seen == samples.all
    assert len(seen) > wire.MAX_SAMPLES
