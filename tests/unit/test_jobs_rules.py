"""What becomes of a job: decisions on reports, silence and kills."""

from __future__ import annotations

import pytest

from airpanda.core.errors import InvalidTransitionError
from airpanda.db.states import LEASED, NEW_ATTEMPT, RETRIABLE, SAME_ATTEMPT, WAITING, may_follow
from airpanda.jobs.rules import (
    MAX_RETURNS,
    Ends,
    Goes,
    Held,
    after_report,
    after_silence,
    lost_heartbeat,
    took_too_long,
)
from airpanda.messages import Blame, ErrorSource, JobError, JobStatus

S = JobStatus


def held(status: S = S.RUNNING, **changes: object) -> Held:
    return Held(**{"status": status, "max_attempt": 3, "charged": 0, "returned": 0, "told_to_stop": False} | changes)


def error(blame: Blame, code: int = 1305) -> JobError:
    return JobError(source=ErrorSource.PILOT, code=code, diag="it broke", blame=blame)


@pytest.mark.parametrize(
    ("stored", "reported", "then"),
    [
        (S.SENT, S.STARTING, S.STARTING),
        (S.SENT, S.RUNNING, S.RUNNING),
        (S.RUNNING, S.RUNNING, S.RUNNING),
        (S.RUNNING, S.STARTING, S.RUNNING),
        (S.RUNNING, S.HOLDING, S.HOLDING),
        (S.HOLDING, S.RUNNING, S.HOLDING),
        (S.TRANSFERRING, S.RUNNING, S.TRANSFERRING),
    ],
)
def test_progress_and_late_progress(stored: S, reported: S, then: S) -> None:
    assert after_report(held(stored), reported, []) == Goes(then)


@pytest.mark.parametrize(
    ("stored", "reported"),
    [(S.SENT, S.FINISHED), (S.STARTING, S.FINISHED), (S.SENT, S.HOLDING), (S.RUNNING, S.ACTIVATED)],
)
def test_what_may_not_follow(stored: S, reported: S) -> None:
    with pytest.raises(InvalidTransitionError):
        after_report(held(stored), reported, [])


@pytest.mark.parametrize("blame", [Blame.SITE, Blame.SYSTEM])
def test_errors_of_others_are_not_charged(blame: Blame) -> None:
    decision = after_report(held(charged=2), S.FAILED, [error(blame)])
    assert decision == Ends(S.FAILED, S.ACTIVATED, 2, 1, "pilot error 1305: it broke")


@pytest.mark.parametrize("errors", [[], [error(Blame.USER)], [error(Blame.SITE), error(Blame.USER)]])
def test_errors_of_the_user_and_unexplained_ones_are_charged(errors: list[JobError]) -> None:
    first = after_report(held(), S.FAILED, errors)
    assert isinstance(first, Ends)
    assert (first.job, first.charged, first.returned) == (S.ACTIVATED, 1, 0)
    last = after_report(held(charged=2), S.FAILED, errors)
    assert isinstance(last, Ends)
    assert (last.attempt, last.job, last.charged) == (S.FAILED, S.FAILED, 3)


@pytest.mark.parametrize("stored", [S.SENT, S.STARTING])
def test_handing_back_is_free_but_not_for_ever(stored: S) -> None:
    decision = after_report(held(stored, max_attempt=1), S.ACTIVATED, [error(Blame.SITE, 1226)])
    assert decision == Ends(S.FAILED, S.ACTIVATED, 0, 1, "pilot error 1226: it broke")
    decision = after_report(held(stored, returned=MAX_RETURNS), S.ACTIVATED, [error(Blame.SITE, 1226)])
    assert isinstance(decision, Ends)
    assert decision.job is S.FAILED
    assert "1226" in decision.reason


def test_silence_is_not_charged() -> None:
    decision = after_silence(held(charged=2), lost_heartbeat())
    assert (decision.attempt, decision.job, decision.charged, decision.returned) == (S.FAILED, S.ACTIVATED, 2, 1)
    assert "100" in decision.reason


@pytest.mark.parametrize("reported", [S.FAILED, S.CANCELLED])
def test_a_stop_on_request_is_final_and_finished_work_counts(reported: S) -> None:
    told = held(told_to_stop=True)
    for decision in (after_report(told, reported, []), after_silence(told, lost_heartbeat())):
        assert isinstance(decision, Ends)
        assert (decision.job, decision.charged) == (S.CANCELLED, 0)
    finished = after_report(told, S.FINISHED, [])
    assert isinstance(finished, Ends)
    assert finished.job is S.FINISHED


def test_a_pilot_cannot_cancel_on_its_own() -> None:
    decision = after_report(held(), S.CANCELLED, [])
    assert isinstance(decision, Ends)
    assert decision.job is S.ACTIVATED


def test_every_decision_is_in_the_transition_table() -> None:
    for stored in LEASED:
        for reported in (S.STARTING, S.RUNNING, S.HOLDING, S.FINISHED, S.FAILED, S.CANCELLED, S.ACTIVATED):
            for told in (False, True):
                for errors in ([], [error(Blame.SITE)]):
                    try:
                        decision = after_report(held(stored, told_to_stop=told), reported, errors)
                    except InvalidTransitionError:
                        continue
                    if isinstance(decision, Goes):
                        assert decision.status is stored or may_follow(stored, decision.status)
                    else:
                        assert may_follow(stored, decision.job, next_attempt=decision.is_next_attempt)


def test_the_table_is_whole() -> None:
    assert set(SAME_ATTEMPT) == set(S)
    assert {status for status in S if status.is_final} == RETRIABLE | {S.FINISHED}
    assert all(not SAME_ATTEMPT[status] for status in RETRIABLE | {S.FINISHED})
    assert WAITING | LEASED | RETRIABLE | {S.FINISHED} == set(S)
    assert S.FINISHED not in NEW_ATTEMPT
    assert not any(may_follow(old, S.RUNNING, next_attempt=True) for old in S)


@pytest.mark.parametrize(
    ("status", "code"), [(S.SENT, 102), (S.STARTING, 105), (S.HOLDING, 103), (S.TRANSFERRING, 104)]
)
def test_a_state_that_takes_too_long_has_pandas_code_and_costs_nothing(status: S, code: int) -> None:
    error = took_too_long(status, 60)
    assert (error.code, error.blame) == (code, Blame.SYSTEM)
    decision = after_silence(held(status, charged=2), error)
    assert (decision.job, decision.charged, decision.returned) == (S.ACTIVATED, 2, 1)
