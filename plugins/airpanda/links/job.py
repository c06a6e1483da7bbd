"""From an Airflow task instance to its jobs in the dispatcher, by the api-server it is seen on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


class _Link(BaseOperatorLink):
    """A path below the api-server, or "" while nothing was submitted."""

    key: ClassVar[str]
    path: ClassVar[str]

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The path, with the number that the operator has left in XCom."""
        number = XCom.get_value(key=self.key, ti_key=ti_key)
        return self.path.format(number) if number else ""


class PandaJobLink(_Link):
    """The jobs behind a task instance, with their attempts and outputs."""

    name = "PanDA jobs"
    key = "panda_task_id"
    path = "/panda/v1/task/{}/jobs"


class PandaTaskLink(_Link):
    """The panda task: its jobs by state."""

    name = "PanDA task"
    key = "panda_task_id"
    path = "/panda/v1/task/{}"


class PandaLogLink(_Link):
    """The payload's log of the first job, or of the one that failed."""

    name = "Payload log"
    key = "panda_job_id"
    path = "/panda/v1/job/{}/log"


class PilotLogLink(_Link):
    """The log of the pilot that ran that job: a compressed tar."""

    name = "Pilot log"
    key = "panda_job_id"
    path = "/panda/v1/job/{}/pilot_log"


LINKS = (PandaTaskLink(), PandaJobLink(), PandaLogLink(), PilotLogLink())
