"""Send identical pilots to a queue's computing element."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, conf

from airpanda.computing.elements import ComputingElementError, PilotBatch, SubmitUncertainError
from airpanda.computing.queues import PandaQueue
from airpanda.core.secret import Secret
from airpanda.hooks import calls
from airpanda.hooks.computing import element_of
from airpanda.hooks.context import task_instance_key
from airpanda.hooks.panda import PandaHook
from airpanda.messages import BatchIntent, BatchRecord

if TYPE_CHECKING:
    from airpanda.computing.elements import ComputingElement
    from airpanda.messages import IntendedBatch


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
            ComputingElementError, ServiceError: the computing element or the dispatcher failed; it is on record.
        """
        hook = PandaHook(self.panda_conn_id)
        intended = hook.send(
            calls.intend_batch(
                BatchIntent(queue=self.panda_queue, n_pilots=int(self.n_pilots), ti=task_instance_key(context))
            )
        )
        wrapper = Path(conf.get("airpanda", "include_dir"), "pilot", "wrapper.sh")
        element = element_of(PandaQueue.from_wire(intended.queue), wrapper)
        try:
            handles = _submit(element, intended)
        except ComputingElementError as error:
            hook.send(calls.record_batch(intended.batch_id, _failure(element.name, error)))
            raise
        finally:
            element.close()
        record = BatchRecord(state="submitted", ce=element.name, handles=handles)
        hook.send(calls.record_batch(intended.batch_id, record))
        self.log.info("submitted %d pilots to %s, tag %s", len(handles), self.panda_queue, intended.tag)
        return {
            "batch_id": intended.batch_id,
            "tag": intended.tag,
            "n_pilots": len(handles),
            "ce_job_ids": list(handles.values()),
        }


def _submit(element: ComputingElement, intended: IntendedBatch) -> dict[int, str]:
    tokens = {p.pilot_id: Secret(p.token.get_secret_value()) for p in intended.pilots}
    submission = element.submit(PilotBatch(tag=intended.tag, tokens=tokens))
    return {pilot_id: str(handle) for pilot_id, handle in submission.handles.items()}


def _failure(ce: str, error: ComputingElementError) -> BatchRecord:
    uncertain = isinstance(error, SubmitUncertainError)
    return BatchRecord(state="uncertain" if uncertain else "failed", ce=ce, reason=str(error)[:4000])
