"""Wait for jobs and panda tasks that somebody else has submitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue, conf
from airflow.sdk.exceptions import AirflowFailException

from airpanda.hooks import calls
from airpanda.hooks.panda import PandaHook
from airpanda.messages import JobStatus
from airpanda.sensors.numbers import number_of, pause_of
from airpanda.triggers.panda_task import PandaTaskTrigger, describe


class PandaTaskSensor(BaseSensorOperator):
    """Succeeds when all jobs of a panda task are final, and enough of them finished; XCom has the counts by state.

    Args:
        panda_task_id: its number, for example another task's ``.output["task_id"]`` (templated).
        at_least: how many jobs must have finished; all by default (templated).
        deferrable: wait in the triggerer, together with the tasks that wait for their own jobs, instead of being
            rescheduled each ``poke_interval`` seconds; Airflow's ``[operators] default_deferrable`` by default.
    """

    template_fields: Sequence[str] = ("panda_task_id", "at_least")
    ui_color = "#cfe4f7"

    def __init__(
        self,
        *,
        panda_task_id: Any,
        at_least: Any = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        panda_conn_id: str = PandaHook.default_conn_name,
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(mode=mode, **kwargs)
        self.panda_task_id = panda_task_id
        self.at_least = at_least
        self.deferrable = deferrable
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> Any:
        """Raises as :meth:`poke`."""
        if not self.deferrable:
            return super().execute(context)
        seen = self.poke(context)
        if seen.is_done:
            return seen.xcom_value
        self.defer(
            trigger=PandaTaskTrigger(
                panda_task_id=self._number(),
                ti=None,
                poll_s=pause_of(self),
                panda_conn_id=self.panda_conn_id,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )
        raise AssertionError("unreachable: defer raises")

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> Any:
        """Resume; what somebody has re-opened meanwhile is waited for again. Raises as :meth:`poke`."""
        if not event["done"]:
            raise AirflowFailException(f"panda task {self.panda_task_id} could not be followed: {event['note']}")
        return self.execute(context)

    def poke(self, context: Any) -> PokeReturnValue:
        """Raises:
        AirflowFailException: the jobs have ended and too few of them finished: waiting on changes nothing. Or a
            number is none.
        AirpandaError: the dispatcher refuses or does not answer.
        """
        at_least = None if self.at_least is None else number_of(self, "at_least")
        progress = PandaHook(self.panda_conn_id).send(calls.progress(self._number()))
        self.log.info("panda_task=%d %s", progress.task_id, describe(progress))
        if not progress.done:
            return PokeReturnValue(is_done=False)
        wanted = progress.total if at_least is None else at_least
        finished = progress.counts.get(JobStatus.FINISHED, 0)
        if finished < wanted:
            raise AirflowFailException(
                f"panda task {progress.task_id} has ended with {finished} finished jobs of {wanted} that must: whoever"
                " submitted it must look why, and clear its Airflow task"
            )
        return PokeReturnValue(is_done=True, xcom_value={status.value: n for status, n in progress.counts.items() if n})

    def _number(self) -> int:
        return number_of(self, "panda_task_id")


class PandaJobSensor(BaseSensorOperator):
    """Succeeds when a job has finished; XCom has its outputs, which can be inputs of others.

    Args:
        panda_id: its PandaID (templated).
    """

    template_fields: Sequence[str] = ("panda_id",)
    ui_color = "#cfe4f7"

    def __init__(
        self,
        *,
        panda_id: Any,
        panda_conn_id: str = PandaHook.default_conn_name,
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(mode=mode, **kwargs)
        self.panda_id = panda_id
        self.panda_conn_id = panda_conn_id

    def poke(self, context: Any) -> PokeReturnValue:
        """Raises:
        AirflowFailException: the job has ended otherwise: waiting on changes nothing. Or the PandaID is none.
        AirpandaError: the dispatcher refuses or does not answer.
        """
        job = PandaHook(self.panda_conn_id).send(calls.job(number_of(self, "panda_id")))
        self.log.info("PandaID=%d is %s", job.panda_id, job.status.value)
        if not job.status.is_final:
            return PokeReturnValue(is_done=False)
        if job.status is not JobStatus.FINISHED:
            raise AirflowFailException(f"PandaID {job.panda_id} is {job.status.value}: {job.reason or 'see its log'}")
        outputs = [file.model_dump(mode="json", include={"lfn", "source", "size", "sha256"}) for file in job.outputs]
        return PokeReturnValue(is_done=True, xcom_value=outputs)
