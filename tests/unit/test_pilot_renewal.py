"""Renewal of the payload's proxy: what is tried when, and what is told when it fails to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from airpanda.core.clock import utcnow
from airpanda.core.errors import IdentitySwitchError
from airpanda.pilot import errors, renewal
from airpanda.pilot.errors import JobFault, Kind
from airpanda.pilot.renewal import Renewal


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "FIRST_PAUSE_S", 0.02)


def ending(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def make(renew: Callable[[], datetime], *, ends_s: float, needed_s: float = 1000, margin_s: float = 0.1) -> Renewal:
    return Renewal(renew, not_after=ending(ends_s), needed_s=needed_s, margin_s=margin_s, now=utcnow)


def wait_for(condition: Callable[[], object], limit_s: float = 60) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        (JobFault(errors.MYPROXY_DOWN, "connection refused"), "system"),
        (JobFault(errors.NOT_SERVED, "policy"), "system"),
        (JobFault(errors.OWN_PROXY, "expired"), "site"),
        (IdentitySwitchError("203"), "site"),
        (PermissionError(13, "not writable"), "site"),
        (ValueError("not foreseen"), "system"),
        (JobFault(errors.NO_PROXY, "destroyed"), "user"),
        (JobFault(errors.WRONG_PROXY, "another"), "user"),
    ],
    ids=lambda value: str(value),
)
def test_a_renewal_that_fails_to_the_end_names_the_cause(error: Exception, blame: str) -> None:
    calls = []

    def renew() -> datetime:
        calls.append(1)
        raise error

    with make(renew, ends_s=0.5) as one:
        wait_for(lambda: len(calls) >= 2)
        wait_for(lambda: one.fault)
        fault = one.fault
    assert fault is not None
    assert (fault.kind.code, fault.kind.blame) == (1370, blame)
    assert (error.strerror if isinstance(error, OSError) else str(error)) in str(fault)
    assert one.renewed == 0


def test_the_payload_is_kept_until_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    def renew() -> datetime:
        raise JobFault(errors.MYPROXY_DOWN)

    one = make(renew, ends_s=100, margin_s=10)
    begin = time.monotonic()
    for seconds, stopped in ((0, False), (89, False), (91, True)):
        monkeypatch.setattr(renewal.time, "monotonic", lambda at=begin + seconds: at)
        assert (one.fault is not None) is stopped


def test_a_newer_proxy_that_ends_no_later_is_a_failure() -> None:
    end = ending(1.5)
    one = Renewal(lambda: end, not_after=end, needed_s=1000, margin_s=0.3, now=utcnow)
    with one:
        wait_for(lambda: one.fault)
    assert one.renewed == 0
    assert "no later" in str(one.fault)


def test_a_failure_that_passes_leaves_no_trace() -> None:
    answers: Iterator[Exception | datetime] = iter([JobFault(errors.MYPROXY_DOWN), ending(2000)])

    def renew() -> datetime:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with make(renew, ends_s=5, margin_s=2) as one:
        wait_for(lambda: one.renewed == 1)
        assert one.fault is None


def test_it_is_renewed_again_and_again_while_the_server_grants_little() -> None:
    with make(lambda: ending(2.0), ends_s=2.0, margin_s=0.5) as one:
        wait_for(lambda: one.renewed >= 3)
        assert one.fault is None


def test_a_proxy_that_outlives_the_job_is_left_alone() -> None:
    def renew() -> datetime:
        raise AssertionError("not needed")

    with make(renew, ends_s=1000.5, needed_s=1000, margin_s=2000) as one:
        one._thread.join(5)
        assert not one._thread.is_alive()
        assert one.fault is None


KINDS: tuple[Kind, ...] = (errors.PROXY_ENDS_USER, errors.PROXY_ENDS_SITE, errors.PROXY_ENDS_SYSTEM)


def test_the_code_is_pandas() -> None:
    assert {kind.code for kind in KINDS} == {1370}
    assert {kind.blame for kind in KINDS} == {"user", "site", "system"}
