"""Warn once a day about staged credentials that end soon: their owners must stage fresh ones.

The run's XCom lists them, without any secret; jobs that wait for such a credential are closed with the reason when it
cannot cover them any more.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import Param, dag

from airpanda.operators.forecast import CredentialForecastOperator


@dag(
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["airpanda", "operations"],
    params={
        "hours": Param(
            24,
            type="integer",
            minimum=1,
            maximum=8760,
            title="Hours ahead",
            description="staged credentials that end within so many hours are listed",
        )
    },
    doc_md=__doc__,
)
def panda_credentials() -> None:
    """Wire the forecast."""
    CredentialForecastOperator(
        task_id="warn",
        hours="{{ params.hours }}",
        doc_md="Lists staged credentials that end soon, in its log and its XCom.",
    )


panda_credentials()
