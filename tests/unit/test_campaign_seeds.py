"""Which seeds a campaign's run takes: no two periods have the same events, and a run without a period has some, too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.dag_processing.dagbag import DagBag

DAGS = Path(__file__).resolve().parents[2] / "dags"
Plan = Callable[..., list[int]]
NOON = pendulum.datetime(2026, 3, 1, 12)  # of the kind that Airflow gives to a task


@pytest.fixture(scope="module", name="plan")
def seeds_of_a_run() -> Plan:
    dag = DagBag(dag_folder=str(DAGS / "production_campaign.py")).dags["production_campaign"]

    def seeds(**run: Any) -> list[int]:
        params = {"first_seed": run.pop("first_seed", None), "n_jobs": 3, "card": "zmumu"}
        return list(dag.get_task("plan").python_callable(params=params, **run)["seeds"])

    return seeds


def test_a_seed_that_is_given_is_taken(plan: Plan) -> None:
    assert plan(first_seed=7, data_interval_start=NOON) == [7, 8, 9]


@pytest.mark.parametrize("between", [timedelta(hours=1), timedelta(days=1), timedelta(days=28), timedelta(days=3000)])
def test_two_periods_have_no_seed_in_common(plan: Plan, between: timedelta) -> None:
    first, second = (plan(data_interval_start=moment)[0] for moment in (NOON, NOON + between))
    assert abs(first - second) >= 10_000, "as many as a run may have jobs"


def test_a_run_that_is_cleared_has_its_seeds_again(plan: Plan) -> None:
    assert plan(data_interval_start=NOON) == plan(data_interval_start=NOON)


def test_a_run_without_a_logical_date_begins_when_it_is_made(plan: Plan) -> None:
    assert plan(dag_run=SimpleNamespace(run_after=NOON)) == plan(data_interval_start=NOON)


@pytest.mark.parametrize("moment", [datetime(2025, 12, 31, 23, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)])
def test_seeds_stay_within_what_pythia_takes(plan: Plan, moment: datetime) -> None:
    first, *_, last = plan(data_interval_start=moment)
    assert 1 <= first < last <= 800_010_000
