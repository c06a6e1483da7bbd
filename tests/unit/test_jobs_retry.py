"""Retry rules: what a known error changes about the next attempt."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airpanda.db import seeds
from airpanda.jobs.retry import Needs, RetryRule, Verdict, bounded, changed, covered, explained, judge
from airpanda.jobs.rules import Ends
from airpanda.messages import Blame, ErrorSource, JobError, JobStatus, RetryAction

S, A = JobStatus, RetryAction
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MOST = Needs(4000, 7200)


def rule(number: int = 1, action: RetryAction = A.NO_RETRY, **changes: Any) -> RetryRule:
    plain = {
        "source": "pilot", "code": 1212, "pattern": "", "queue": "", "factor": 1.5, "max_attempt": 2,
        "is_active": True, "expires_at": None,
    }  # fmt: skip
    return RetryRule(rule_id=number, action=action, **plain | changes)


def error(code: int = 1212, blame: Blame = Blame.USER, diag: str = "out of memory\nat node wn1") -> JobError:
    return JobError(source=ErrorSource.PILOT, code=code, diag=diag, blame=blame)


def verdict(*rules: RetryRule, errors: list[JobError] | None = None) -> Verdict:
    return judge(rules, [error()] if errors is None else errors, queue="DEMO", now=NOW)


@pytest.mark.parametrize(
    ("changes", "matches"),
    [
        ({}, True),
        ({"code": None}, True),
        ({"code": 1213}, False),
        ({"source": "exe"}, False),
        ({"queue": "DEMO"}, True),
        ({"queue": "OTHER"}, False),
        ({"pattern": "out of*wn1"}, True),
        ({"pattern": "OUT ?? Memory"}, True),
        ({"pattern": "*at node"}, True),
        ({"pattern": "out ? memory"}, False),
        ({"pattern": "out of.*wn1"}, False),
        ({"pattern": "[o]ut"}, False),
        ({"pattern": "memory"}, False),
        ({"expires_at": NOW}, False),
        ({"expires_at": NOW + timedelta(seconds=1)}, True),
    ],
)
def test_what_a_rule_matches(changes: dict[str, Any], matches: bool) -> None:
    assert rule(**changes).matches(error(), queue="DEMO", now=NOW) is matches


@pytest.mark.parametrize("text", ["[Errno 28] no space", "(a|b)+", "[!x]", "a\\b", "]", "{1}", "^$."])
def test_nothing_but_the_two_wildcards_means_anything(text: str) -> None:
    assert rule(pattern=text).matches(error(diag=f"{text} left"), queue="DEMO", now=NOW)
    assert not rule(pattern=text).matches(error(diag="x"), queue="DEMO", now=NOW)


@pytest.mark.parametrize(
    "pattern",
    ["*a" * 249 + "*b", "*" + "a?" * 249 + "b", "*a*?" * 124 + "*b", "*" + "?" * 498 + "b", "(a+)+" * 99 + "b"],
)
def test_no_pattern_takes_long_on_the_longest_text(pattern: str) -> None:
    """As a regular expression, or with a matcher that goes back, these would not end within anybody's life."""
    took = []
    for _ in range(3):  # a collection of the whole suite's garbage may fall into one of them
        started = time.thread_time()
        assert not rule(pattern=pattern).matches(error(diag="a" * 4096), queue="DEMO", now=NOW)
        took.append(time.thread_time() - started)
    assert min(took) < 0.1


def test_the_narrowest_bound_counts_and_of_equals_the_strictest() -> None:
    wide = rule(1, A.NO_RETRY, code=None)
    narrow = rule(2, A.LIMIT, max_attempt=5, queue="DEMO")
    assert verdict(wide, narrow).bound == 5
    assert verdict(rule(1, A.LIMIT, max_attempt=5), rule(2, A.LIMIT, max_attempt=3)).bound == 3
    assert verdict(rule(1, A.LIMIT, max_attempt=5), rule(2, A.NO_RETRY)).bound == 0


@pytest.mark.parametrize("blame", [Blame.SITE, Blame.SYSTEM])
@pytest.mark.parametrize("action", [A.NO_RETRY, A.LIMIT])
def test_nothing_of_the_site_takes_attempts_from_the_user(blame: Blame, action: RetryAction) -> None:
    found = verdict(rule(action=action), errors=[error(blame=blame)])
    assert found.bound is None
    assert "never use up the user's attempts" in found.why[0]


def test_the_change_is_that_of_the_most_telling_error() -> None:
    memory, time = rule(1, A.MORE_MEMORY), rule(2, A.MORE_TIME, code=1213)
    assert verdict(time, memory, errors=[error(1213), error(1212)]).change is time
    assert verdict(time, memory, errors=[error(1), error(1212)]).change is memory


def test_a_rule_that_only_logs_says_what_it_would_do() -> None:
    found = verdict(rule(7, A.NO_RETRY, is_active=False))
    assert (found.bound, found.change) == (None, None)
    assert found.why == ("rule 7 (no retry) for pilot error 1212 would apply; it only logs",)


def test_more_of_what_was_lacking_up_to_what_pilots_have() -> None:
    more = verdict(rule(1, A.MORE_MEMORY))
    assert changed(Needs(1000, 3600), more, most=MOST) == Needs(1500, 3600)
    assert changed(Needs(3000, 3600), more, most=MOST) == Needs(4000, 3600)
    assert changed(Needs(5000, 3600), more, most=MOST) == Needs(5000, 3600)
    assert changed(Needs(1000, 3600), more, most=None) == Needs(1000, 3600)
    assert changed(Needs(1000, 3600), verdict(rule(1, A.MORE_TIME)), most=MOST) == Needs(1000, 5400)


@pytest.mark.parametrize(("left_s", "gets"), [(6300, 5400), (6299, 3600), (10, 3600), (-1, 3600)])
def test_no_more_time_than_the_credential_lasts_after_some_waiting(left_s: int, gets: int) -> None:
    more = verdict(rule(1, A.MORE_TIME))
    after, needs = covered(more, Needs(1000, 3600), Needs(1000, 5400), left_s=left_s)
    assert needs == Needs(1000, gets)
    assert ("no more time is asked for" in " ".join(after.why)) is (gets == 3600)


def test_bounds_end_only_what_was_charged() -> None:
    charged = Ends(S.FAILED, S.ACTIVATED, 1, 0, "x")
    returned = Ends(S.FAILED, S.ACTIVATED, 0, 1, "x")
    stop = verdict(rule(1, A.NO_RETRY))
    assert bounded(charged, stop, charged_before=0).job is S.FAILED
    assert bounded(returned, stop, charged_before=0) == returned
    assert bounded(charged, verdict(rule(1, A.LIMIT)), charged_before=0) == charged
    assert bounded(charged, verdict(), charged_before=0) == charged


def test_the_decision_is_explained() -> None:
    ends, found = Ends(S.FAILED, S.ACTIVATED, 1, 0, "x"), verdict(rule(3, A.MORE_MEMORY))
    says = explained(ends, found, Needs(1000, 3600), Needs(1500, 3600), charged_before=0, max_attempt=3)
    assert says == (
        "rule 3 (more memory) for pilot error 1212; used up attempt 1 of 3; the next attempt asks for 1500 MiB instead"
        " of 1000"
    )


def test_no_seed_takes_attempts_away() -> None:
    assert len(seeds.statements()) > 10
    assert not any("no_retry" in each or "'limit'" in each for each in seeds.statements())
