"""From an Airflow task to the log of its pilots in the dispatcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


class PilotLogLink(BaseOperatorLink):
    """The pilots that a task instance has sent, with the logs of those that failed."""

    name = "Pilots"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """A path below the api-server, or "" while nothing was submitted."""
        batch_id = XCom.get_value(key="pilot_batch_id", ti_key=ti_key)
        return f"/panda/v1/batch/{batch_id}/logs" if batch_id else ""
