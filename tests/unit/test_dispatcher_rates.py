"""Token buckets: what one caller may send."""

from __future__ import annotations

import pytest

from airpanda.dispatcher import rates
from airpanda.dispatcher.rates import Rates


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_more_than_the_burst_waits_and_others_do_not() -> None:
    clock = Clock()
    buckets = Rates(2.0, clock=clock)
    assert [buckets.take("a") for _ in range(20)] == [0.0] * 20
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("a") == pytest.approx(0.5), "asking too early costs nothing"
    assert buckets.take("b") == 0.0
    clock.now += 0.5
    assert buckets.take("a") == 0.0
    assert buckets.take("a") == pytest.approx(0.5)
    clock.now += 3600
    assert [buckets.take("a") for _ in range(21)] == [0.0] * 20 + [pytest.approx(0.5)]


def test_no_limit() -> None:
    buckets = Rates(0.0)
    assert all(buckets.take("a") == 0.0 for _ in range(1000))


def test_a_slow_rate_still_lets_one_through() -> None:
    buckets = Rates(0.01, clock=Clock())
    assert (buckets.take("a"), buckets.take("a")) == (0.0, pytest.approx(100.0))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_CALLERS", 10)
    buckets = Rates(1.0, clock=Clock())
    for n in range(100):
        buckets.take(n)
    assert len(buckets._buckets) == 10
    assert buckets.take(0) == 0.0, "a forgotten caller has a full bucket"
