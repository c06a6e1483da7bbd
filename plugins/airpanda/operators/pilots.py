"""Send identical pilots to a queue's computing element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from airpanda.computing.elements import Handle
from airpanda.computing.queues import PandaQueue
from airpanda.core.errors import AirpandaError, NotFoundError
from airpanda.hooks import calls
from airpanda.hooks.computing import element_of, wrapper_path
from airpanda.hooks.context import task_instance_key
from airpanda.hooks.panda import PandaHook
from airpanda.hooks.submission import HOLD_S, Sent, cancel_pilots, log_of, send_pilots
from airpanda.links.pilots import PilotLogLink
from airpanda.messages import BatchIntent, BatchView, JobStatus, PilotLog, PilotView, TaskInstanceKey
from airpanda.triggers.pilots import PilotBatchTrigger

ENOUGH = "enough"
_LOG_BYTES = 60_000
_LOG_LINES = 200
_SHOWN_LOGS = 2


class PilotSubmitOperator(BaseOperator):
    """Submits pilots to a PanDA queue in one go; they pull work by themselves.

    A repeated try sends no second time what the first one sent: the intent is on record before the computing element
    hears of it, under a key of the task instance, and a tag by which the element finds it again. When all pilots of the
    key have ended, a cleared task sends new ones. XCom holds ``{"batch_id", "tag", "n_pilots", "ce_job_ids"}``.

    Args:
        panda_queue: the PanDA queue (templated).
        n_pilots: how many, 1 to 10 000; or ``"enough"``: as many as the waiting jobs can fill, less those that are
            there and free (templated).
        for_panda_task: with ``"enough"``: count the waiting jobs of this panda task only (templated).
        wait_for: the task succeeds when so many have registered, and fails when all have ended and fewer had; 0: it
            succeeds when they are submitted. Waiting holds no worker slot.
        poll: pause between two questions while waiting.
    """

    template_fields: Sequence[str] = ("panda_queue", "n_pilots", "for_panda_task")
    operator_extra_links = (PilotLogLink(),)
    ui_color = "#d7ecd9"
    hold_s = HOLD_S

    def __init__(
        self,
        *,
        panda_queue: str,
        n_pilots: int | str = 1,
        for_panda_task: int | str | None = None,
        wait_for: int = 0,
        poll: timedelta = timedelta(seconds=5),
        panda_conn_id: str = PandaHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.panda_queue = panda_queue
        self.n_pilots = n_pilots
        self.for_panda_task = for_panda_task
        self.wait_for = wait_for
        self.poll = poll
        self.panda_conn_id = panda_conn_id
        self._batch_id: int | None = None
        self._ti: TaskInstanceKey | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Record the intent, submit, record the handles; wait, if asked to.

        Raises:
            RequestError, NotAuthorisedError: the queue is unknown or not for this client; nothing was submitted.
            ComputingElementError, ServiceError: the computing element or the dispatcher failed; it is on record, and
                a retry goes on from there.
        """
        hook = PandaHook(self.panda_conn_id)
        self._ti = ti = task_instance_key(context)
        n_pilots = self._how_many(hook)
        intent = BatchIntent(
            queue=self.panda_queue,
            n_pilots=max(n_pilots, 1),
            only_known=n_pilots == 0,
            ti=ti,
            key=_key(ti),
            hold_s=self.hold_s,
        )
        try:
            sent = send_pilots(hook.send, element_of, wrapper_path(), intent, on_intent=self._intended(context))
        except NotFoundError:
            if not intent.only_known or self._batch_id is not None:
                raise
            self.log.info("the pilots of %s that are there suffice", self.panda_queue)
            return {"batch_id": None, "tag": "", "n_pilots": 0, "ce_job_ids": []}
        self.log.info("submitted %d pilots to %s, tag %s", len(sent.handles), self.panda_queue, sent.tag)
        if self.wait_for:
            self.defer(
                trigger=PilotBatchTrigger(
                    batch_id=sent.batch_id,
                    panda_queue=self.panda_queue,
                    wanted=min(self.wait_for, len(sent.handles)),
                    ti=ti.model_dump(mode="json"),
                    poll_s=self.poll.total_seconds(),
                    panda_conn_id=self.panda_conn_id,
                ),
                method_name="execute_complete",
            )
        return _result(sent)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Resume: enough have registered, or the reason why not, with the pilots' own logs first."""
        hook = PandaHook(self.panda_conn_id)
        view = hook.send(calls.batch(int(event["batch_id"])))
        if not event["good"]:
            self._show_logs(hook, view)
            raise AirflowException(str(event["note"]))
        handles = {pilot.pilot_id: pilot.ce_job_id for pilot in view.pilots}
        return _result(Sent(view.batch_id, view.tag, handles))

    def on_kill(self) -> None:
        """The running (not deferred) task was killed: end what it has submitted, unless another try has adopted it."""
        if self._batch_id is None:
            return
        hook = PandaHook(self.panda_conn_id)
        queue = _queue(hook, self.panda_queue)
        reason = "the submitting Airflow task was killed"
        n = cancel_pilots(hook.send, element_of, wrapper_path(), self._batch_id, queue, reason, self._ti)
        self.log.info("%d pilots of batch %d were asked to end", n, self._batch_id)

    def _intended(self, context: Any) -> Any:
        def note(batch_id: int) -> None:
            self._batch_id = batch_id
            context["ti"].xcom_push(key="pilot_batch_id", value=batch_id)

        return note

    def _how_many(self, hook: PandaHook) -> int:
        """How many more are needed. What no element has taken on yet (no handle) may never come, and is not counted.

        Raises:
            RequestError: the queue or the panda task is unknown.
        """
        if self.n_pilots != ENOUGH:
            return int(self.n_pilots)
        view = hook.send(calls.factory(self.panda_queue))
        queue = PandaQueue.from_wire(view.queue)
        waiting, cores = view.demand.waiting, view.demand.waiting_cores
        if self.for_panda_task not in (None, ""):
            progress = hook.send(calls.progress(int(str(self.for_panda_task))))
            waiting = cores = progress.counts.get(JobStatus.ACTIVATED, 0)
        side_by_side = queue.pilot.max_payloads or queue.slot.cores
        needed = max(math.ceil(waiting / side_by_side), math.ceil(cores / queue.slot.cores))
        free = sum(pilot.kind == "idle" or (pilot.kind == "queued" and pilot.handle != "") for pilot in view.pilots)
        self.log.info("%d jobs wait, which %d pilots can take; %d are there and free", waiting, needed, free)
        return min(max(needed - free, 0), queue.factory.max_per_cycle)

    def _show_logs(self, hook: PandaHook, view: BatchView) -> None:
        """What the first failed pilots said, in the task log and behind the link."""
        bad = [pilot for pilot in view.pilots if pilot.registered_at is None and pilot.ce_job_id][:_SHOWN_LOGS]
        if not bad:
            return
        queue = _queue(hook, self.panda_queue)
        element = element_of(queue.at(view.ce if view.ce in queue.ces else ""), wrapper_path())
        try:
            for pilot in bad:
                self._show_log(hook, pilot, log_of(element, Handle(pilot.ce_job_id), tail_bytes=_LOG_BYTES))
        except AirpandaError as error:
            self.log.warning("the pilots' logs cannot be had: %s", error)
        finally:
            element.close()

    def _show_log(self, hook: PandaHook, pilot: PilotView, text: str) -> None:
        self.log.info("---- pilot %d (%s): %s %s", pilot.pilot_id, pilot.ce_job_id, pilot.state, pilot.reason)
        for line in text.splitlines()[-_LOG_LINES:]:
            self.log.info("%s", line)
        if text:
            hook.send(calls.keep_pilot_log(pilot.batch_id, pilot.pilot_id, PilotLog(text=text)))


def _key(ti: TaskInstanceKey) -> str:
    return f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}"


def _queue(hook: PandaHook, name: str) -> PandaQueue:
    return PandaQueue.from_wire(hook.send(calls.factory(name)).queue)


def _result(sent: Sent) -> dict[str, Any]:
    return {
        "batch_id": sent.batch_id,
        "tag": sent.tag,
        "n_pilots": len(sent.handles),
        "ce_job_ids": list(sent.handles.values()),
    }
