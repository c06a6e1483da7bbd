"""Wait until a queue has pilots that work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airpanda.hooks import calls
from airpanda.hooks.panda import PandaHook

_WORKING = frozenset({"idle", "busy"})


class PilotSensor(BaseSensorOperator):
    """Succeeds when ``at_least`` pilots of a queue have registered and are heard of, whoever sent them.

    XCom holds how many do what: ``{"queued", "idle", "busy", "silent"}``.

    Args:
        panda_queue: the PanDA queue (templated).
        at_least: how many idle and busy pilots together.
    """

    template_fields: Sequence[str] = ("panda_queue",)
    ui_color = "#e2f0e4"

    def __init__(
        self,
        *,
        panda_queue: str,
        at_least: int = 1,
        panda_conn_id: str = PandaHook.default_conn_name,
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(mode=mode, **kwargs)
        self.panda_queue = panda_queue
        self.at_least = at_least
        self.panda_conn_id = panda_conn_id

    def poke(self, context: Any) -> PokeReturnValue:
        """Raises:
        AirpandaError: the dispatcher refuses or does not answer.
        """
        pilots = PandaHook(self.panda_conn_id).send(calls.factory(self.panda_queue)).pilots
        counts = {word: sum(each.kind == word for each in pilots) for word in ("queued", "idle", "busy", "silent")}
        self.log.info("pilots of %s: %s", self.panda_queue, ", ".join(f"{word} {n}" for word, n in counts.items()))
        working = sum(counts[word] for word in _WORKING)
        return PokeReturnValue(is_done=working >= self.at_least, xcom_value=counts)
