"""Rules of success, decisions on retries, templates: pure, so every case is here."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from airpanda.core.errors import (
    BannedError,
    ConfigurationError,
    ConflictError,
    CredentialError,
    IdentitySwitchError,
    NotAuthorisedError,
    NotFoundError,
    QueueOfflineError,
    RequestError,
    ServiceError,
)
from airpanda.decorators.function import FunctionError
from airpanda.messages import NOBODY_TOOK_IT, JobStatus, JobView
from airpanda.operators.outcome import (
    PandaJobsFailed,
    PandaTaskLost,
    SuccessRule,
    fault_of,
    most_telling,
    paragraph,
    remedy,
)
from airpanda.operators.retries import PandaRetryPolicy
from airpanda.operators.templates import expand, items_of

SITE, SYSTEM = timedelta(minutes=10), timedelta(minutes=1)


@pytest.mark.parametrize(
    ("rule", "total", "needed"),
    [
        ("all", 7, 7), ("100%", 7, 7), (1.0, 7, 7), ("95%", 100, 95), ("95%", 10, 10), (0.5, 3, 2), ("0.5%", 3, 1),
        (1, 7, 1), ("3", 7, 3), (7, 7, 7), ("0.99", 10_000, 9_900), ("70%", 10, 7), ("29%", 100, 29),
    ],
)  # fmt: skip
def test_how_many_jobs_must_finish(rule: Any, total: int, needed: int) -> None:
    assert SuccessRule.parse(rule).needed(total) == needed


@pytest.mark.parametrize("rule", ["", "most", 0, -1, "0%", "101%", 1.5, "nan", None, "0", True])
def test_a_rule_that_is_none_is_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match='must be "all", a share'):
        SuccessRule.parse(rule)


@pytest.mark.parametrize(
    ("error", "action", "pause"),
    [
        (PandaJobsFailed("", {"user": 3}), RetryAction.FAIL, None),
        (PandaJobsFailed("", {"cancelled": 3}), RetryAction.FAIL, None),
        (PandaJobsFailed("", {"user": 300, "site": 1}), RetryAction.RETRY, SITE),
        (PandaJobsFailed("", {"system": 1}), RetryAction.RETRY, SYSTEM),
        (PandaJobsFailed("", {"user": 1, "system": 1}), RetryAction.RETRY, SYSTEM),
        (PandaJobsFailed("", {"system": 1, "site": 1}), RetryAction.RETRY, SITE),
        (PandaJobsFailed("", {"user": 1, "credential": 1}), RetryAction.RETRY, timedelta(seconds=1)),
        (PandaJobsFailed("", {"cancelled": 1, "credential": 1}), RetryAction.RETRY, timedelta(seconds=1)),
        (PandaJobsFailed("", {}), RetryAction.FAIL, None),
        (PandaJobsFailed("", {"credential": 1}), RetryAction.RETRY, timedelta(seconds=1)),
        (PandaTaskLost(""), RetryAction.FAIL, None),
        (ServiceError(""), RetryAction.RETRY, SYSTEM),
        (ServiceError("", retry_after_s=1), RetryAction.RETRY, SYSTEM),
        (ServiceError("", retry_after_s=3600), RetryAction.RETRY, timedelta(hours=1)),
        (ServiceError("", transient=False), RetryAction.FAIL, None),
        (NotAuthorisedError(""), RetryAction.FAIL, None),
        (RequestError(""), RetryAction.FAIL, None),
        (ConfigurationError(""), RetryAction.FAIL, None),
        (CredentialError(""), RetryAction.FAIL, None),
        (BannedError(""), RetryAction.FAIL, None),
        (QueueOfflineError(""), RetryAction.RETRY, SITE),
        (NotFoundError(""), RetryAction.FAIL, None),
        (ConflictError(""), RetryAction.FAIL, None),
        (IdentitySwitchError(""), RetryAction.FAIL, None),
        (FunctionError(""), RetryAction.FAIL, None),
        (KeyError("anybody's"), RetryAction.DEFAULT, None),
    ],
)
def test_airflow_tries_again_where_that_can_help(error: Exception, action: Any, pause: timedelta | None) -> None:
    decision = PandaRetryPolicy().evaluate(error, 1, 3)
    assert (decision.action, decision.retry_delay) == (action, pause)


def job(status: str, reason: str = "", *blames: str) -> JobView:
    """As the dispatcher shows it; with an attempt where somebody is to blame."""
    errors = [{"source": "pilot", "code": 1, "diag": "d", "blame": blame} for blame in blames]
    attempt = {
        "attempt_nr": 1, "status": status, "pilot_id": 5, "node": "wn", "pilot_uid": 1, "account_name": "a",
        "account_uid": 2, "identity_switched": True, "exit_code": 0, "errors": errors, "started_at": None,
        "ended_at": None, "wall_s": 1.5, "cpu_s": 1.0, "max_rss_mib": 10.0,
    }  # fmt: skip
    return JobView.model_validate({
        "panda_id": 11, "task_id": 7, "job_name": "j", "owner": "alice", "owner_dn": "/CN=Alice", "queue": "DEMO",
        "status": status, "attempt_nr": 1, "max_attempt": 3, "ti": {"dag_id": "d", "run_id": "r", "task_id": "t"},
        "outputs": [], "attempts": [attempt] if blames else [], "reason": reason,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (job("failed", "", "user"), "user"),
        (job("failed", "", "site"), "site"),
        (job("failed", "", "system"), "system"),
        (job("failed", "", "site", "user"), "site"),
        (job("failed"), "user"),
        (job("cancelled", "a person stopped it", "site"), "cancelled"),
        (job("closed", f"{NOBODY_TOOK_IT} 604800 s"), "site"),
        (job("closed", "the owner's credential is gone or ends before the job's time limit"), "credential"),
        (job("closed", "the owner's consent to this client and queue has been taken back"), "credential"),
    ],
)
def test_whose_turn_it_is(found: JobView, fault: str) -> None:
    assert fault_of(found) == fault
    said = " ".join(paragraph([found], counts={found.status: 1}, rule="all must finish", next_step=""))
    assert f"At fault is {WHO[fault]}" in said
    assert remedy({fault: 1}) in said  # type: ignore[dict-item]


WHO = {
    "user": "the payload or its description",
    "site": "the site, not the payload",
    "system": "the system, not the payload",
    "credential": "the owner's credential",
    "cancelled": "nobody: a person stopped it",
}


def test_the_most_frequent_fault_is_shown_and_the_others_are_counted() -> None:
    failed = [job("failed", "", "user"), job("failed", "", "site"), job("failed", "", "site")]
    assert most_telling(failed) is failed[1]
    said = " ".join(paragraph(failed, counts={JobStatus.FAILED: 3}, rule="all must finish", next_step="Then."))
    assert (
        "At fault is, in 2 cases, the site, not the payload: its administrator must act; others: user 1. Then." in said
    )


def test_a_policy_survives_being_stored() -> None:
    policy = PandaRetryPolicy(site_wait=timedelta(seconds=7))
    assert vars(PandaRetryPolicy.deserialize(policy.serialize())) == vars(policy)


def test_a_template_fills_in_what_it_knows_and_leaves_other_braces_alone() -> None:
    template = {
        "job_name": "j-{n:03d}",
        "argv": ["awk", "{print $1}", "{item}", "{seed}", "{}", "{unknown}"],
        "outputs": [{"lfn": "o-{seed}"}],
        "scripts": {"a.py": "print({n})"},
        "cores": 2,
    }
    (job,) = list(expand(template, [{"seed": 5}]))
    assert job == {
        "job_name": "j-000",
        "argv": ["awk", "{print $1}", "{'seed': 5}", "5", "{}", "{unknown}"],
        "outputs": [{"lfn": "o-5"}],
        "scripts": {"a.py": "print({n})"},
        "cores": 2,
    }


def test_an_item_cannot_reach_into_objects() -> None:
    (job,) = list(expand({"argv": ["{item.__class__}", "{item[0]}", "{item!r}"]}, ["x"]))
    assert job["argv"] == ["{item.__class__}", "{item[0]}", "{item!r}"]


def test_a_template_is_expanded_over_a_number_or_a_list() -> None:
    assert list(items_of("3", None)) == [0, 1, 2]
    assert items_of(None, ["a"]) == ["a"]
    for count, over in ((None, None), (1, ["a"])):
        with pytest.raises(ValueError, match="either count"):
            items_of(count, over)
