"""A person at Airflow's web UI, by the REST calls that the UI itself makes: trigger, clear, mark, read the log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from airpanda.core.secret import Secret
from airpanda_demo.airflow_api import AirflowApi


class AirflowClient(AirflowApi):
    """One logged-in person."""

    def __init__(self, url: str, user: str, password: Secret[str]) -> None:
        super().__init__(url, user, password)
        self.password = password
        self._client.timeout = httpx.Timeout(90.0)  # the first requests of a fresh api-server on a busy machine

    @property
    def http(self) -> httpx.Client:
        return self._client

    def close(self) -> None:
        self._client.close()

    def start(self, dag_id: str, timeout_s: float = 240.0, **conf: Any) -> str:
        """Trigger as soon as the DAG is known; the run's id."""
        deadline = time.monotonic() + timeout_s
        while not self.knows(dag_id):
            assert time.monotonic() < deadline, f"{dag_id} is not known: {self.import_errors()}"
            time.sleep(0.2)
        return self.trigger(dag_id, conf)

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """The task instance as it is now."""
        where = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        answer = self._client.get(where if map_index < 0 else f"{where}/{map_index}")
        return dict(self._checked(answer))

    def one_try(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> dict[str, Any]:
        """The task instance as this try was."""
        where = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/tries/{try_number}"
        return dict(self._checked(self._client.get(where)))

    def wait_for(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        *states: str,
        tries: int | None = None,
        timeout_s: float = 240.0,
    ) -> dict[str, Any]:
        """The task instance when it is in one of these states (at its try number ``tries``)."""
        deadline = time.monotonic() + timeout_s
        while True:
            ti = self.task(dag_id, run_id, task_id)
            if ti["state"] in states and (tries is None or ti["try_number"] == tries):
                return ti
            assert time.monotonic() < deadline, (
                f"{task_id} is {ti['state']}, try {ti['try_number']}, after {timeout_s:.0f} s;"
                f" wanted {states}, try {tries}\n{self.log(dag_id, run_id, task_id, max(ti['try_number'], 1))[-3000:]}"
            )
            time.sleep(0.1)

    def clear(
        self, dag_id: str, run_id: str, *task_ids: str, downstream: bool = False, only_failed: bool = False
    ) -> None:
        """The button "Clear task instance"."""
        body = {
            "dry_run": False,
            "task_ids": list(task_ids),
            "dag_run_id": run_id,
            "only_failed": only_failed,
            "include_downstream": downstream,
        }
        self._checked(self._client.post(f"/api/v2/dags/{dag_id}/clearTaskInstances", json=body))

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """The buttons "Mark as success" and "Mark as failed"."""
        where = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self._checked(self._client.patch(where, json={"new_state": state}))

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> str:
        """A try's log as text; empty where there is none."""
        where = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        answer = self._client.get(where, headers={"Accept": "application/json"})
        if answer.status_code == 404:
            return ""
        return "\n".join(_line(item) for item in self._checked(answer)["content"])

    def value(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        return self.xcom(dag_id, run_id, task_id, key)

    def links(self, dag_id: str, run_id: str, task_id: str) -> Mapping[str, str | None]:
        """The extra links of a task instance."""
        where = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
        return dict(self._checked(self._client.get(where))["extra_links"])

    def states(self, dag_id: str, run_id: str) -> dict[str, Sequence[Any]]:
        """Task id → state and try number."""
        return {ti["task_id"]: (ti["state"], ti["try_number"]) for ti in self.task_states(dag_id, run_id)}


def _line(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    details = [f"{d.get('exc_type')}: {d.get('exc_value')}" for d in item.get("error_detail") or []]
    return " ".join([str(item.get("event", "")), *details])
