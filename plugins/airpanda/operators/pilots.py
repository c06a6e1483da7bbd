"""Send identical pilots to a queue's computing element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from airflow.sdk import BaseOperator, conf

from airpanda.core.errors import ServiceError
from airpanda.dispatcher.messages import BatchIntent, BatchRecord
from airpanda.hooks import calls
from airpanda.hooks.context import task_instance_key
from airpanda.hooks.panda import PandaHook


class PilotSubmitOperator(BaseOperator):
    """Submits ``n_pilots`` pilots to a PanDA queue in one go; they pull work by themselves.

    The intent is on record before anything is submitted, under a tag that finds the pilots again. XCom
    holds ``{"batch_id", "tag", "n_pilots", "ce_job_ids"}``.

    Args:
        panda_queue: the PanDA queue (templated).
        n_pilots: how many, 1 to 10 000 (templated).
    """

    template_fields: Sequence[str] = ("panda_queue", "n_pilots")
    ui_color = "#d7ecd9"

    def __init__(
        self,
        *,
        panda_queue: str,
        n_pilots: int | str = 1,
        panda_conn_id: str = PandaHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.panda_queue = panda_queue
        self.n_pilots = n_pilots
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> dict[str, Any]:
        """Record the intent, submit, record the handles.

        Raises:
            RequestError, NotAuthorisedError: the queue is unknown or not for this client; nothing was submitted.
            ServiceError: the computing element or the dispatcher failed; what is known is on record.
        """
        from airpanda.computing.elements import PilotBatch, SubmitUncertain, make_element
        from airpanda.computing.queues import PandaQueue
        from airpanda.computing.wrapper import wrapper_text

        hook = PandaHook(self.panda_conn_id)
        intended = hook.send(
            calls.intend_batch(
                BatchIntent(queue=self.panda_queue, n_pilots=int(self.n_pilots), ti=task_instance_key(context))
            )
        )
        queue = PandaQueue.from_wire(intended.queue)
        element = make_element(queue, wrapper_text(conf.get("airpanda", "include_dir")))
        batch = PilotBatch.of(intended.tag, {p.pilot_id: p.token.get_secret_value() for p in intended.pilots})
        try:
            submission = element.submit(batch)
        except ServiceError as error:
            state: Literal["uncertain", "failed"] = "uncertain" if isinstance(error, SubmitUncertain) else "failed"
            record = BatchRecord(state=state, ce=queue.ce.name, reason=str(error)[:4000])
            hook.send(calls.record_batch(intended.batch_id, record))
            raise
        record = BatchRecord(state="submitted", ce=queue.ce.name, handles=dict(submission.handles))
        hook.send(calls.record_batch(intended.batch_id, record))
        self.log.info("submitted %d pilots to %s, tag %s", len(submission.handles), self.panda_queue, intended.tag)
        return {
            "batch_id": intended.batch_id,
            "tag": intended.tag,
            "n_pilots": len(submission.handles),
            "ce_job_ids": list(submission.handles.values()),
        }
