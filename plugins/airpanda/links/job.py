"""From an Airflow task to its panda task in the dispatcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


class PandaJobLink(BaseOperatorLink):
    """The jobs behind a task instance, as the dispatcher shows them."""

    name = "PanDA jobs"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """A path below the api-server, or "" while nothing was submitted."""
        task_id = XCom.get_value(key="panda_task_id", ti_key=ti_key)
        return f"/panda/v1/task/{task_id}/jobs" if task_id else ""
