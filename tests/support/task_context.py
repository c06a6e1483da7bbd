"""What of Airflow's task context our operators read: for running an operator outside Airflow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Context(dict[str, Any]):
    """The context of one try; ``pushed`` is what the operator has put into XCom."""

    def __init__(
        self,
        *,
        try_number: int = 1,
        max_tries: int = 0,
        run_id: str = "r",
        task_id: str = "t",
        ti_id: str = "u",
        retries: int = 0,
    ) -> None:
        self.pushed: dict[str, Any] = {}
        ti = SimpleNamespace(dag_id="d", run_id=run_id, task_id=task_id, map_index=None, id=ti_id)
        ti.try_number, ti.max_tries, ti.task = try_number, max_tries, SimpleNamespace(retries=retries)
        ti.xcom_push = lambda key, value: self.pushed.update({key: value})
        super().__init__(ti=ti)
