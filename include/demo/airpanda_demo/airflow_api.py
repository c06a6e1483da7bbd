"""The demonstration's user of Airflow: the public REST API over loopback."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import httpx

from airpanda.core.secret import Secret
from airpanda_demo.errors import DemoError

FINAL = frozenset({"success", "failed"})


class AirflowApi:
    """One logged-in client. ``is_healthy`` may be asked before anything answers."""

    def __init__(self, url: str, user: str, password: Secret[str]) -> None:
        self._user = user
        self._password = password
        # Neither proxies nor CA bundles of the environment have a say about loopback.
        self._client = httpx.Client(base_url=url, timeout=20.0, trust_env=False)

    def __enter__(self) -> AirflowApi:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def is_answering(self) -> bool:
        """Whether the api-server answers at all."""
        return self._health() is not None

    def is_healthy(self, component: str) -> bool:
        """Whether a component (scheduler, triggerer, dag_processor) has a fresh heartbeat."""
        health = self._health() or {}
        return bool((health.get(component) or {}).get("status") == "healthy")

    def _health(self) -> dict[str, Any] | None:
        try:
            answer = self._client.get("/api/v2/monitor/health", timeout=3.0)
        except httpx.TransportError:
            return None
        return dict(answer.json()) if answer.status_code == 200 else None

    def login(self) -> None:
        """Get a token; every later call carries it."""
        body = {"username": self._user, "password": self._password.reveal()}
        token = self._checked(self._client.post("/auth/token", json=body))["access_token"]
        self._client.headers["Authorization"] = f"Bearer {token}"

    def knows(self, dag_id: str) -> bool:
        """Whether the DAG has been read."""
        return self._client.get(f"/api/v2/dags/{dag_id}").status_code == 200

    def import_errors(self) -> list[str]:
        """DAG files that could not be read, with the reason."""
        found = self._checked(self._client.get("/api/v2/importErrors"))["import_errors"]
        return [f"{item['filename']}: {item['stack_trace'].strip()}" for item in found]

    def trigger(self, dag_id: str, parameters: Mapping[str, Any]) -> str:
        """Start a run; its id."""
        body = {"logical_date": None, "conf": dict(parameters)}
        return str(self._checked(self._client.post(f"/api/v2/dags/{dag_id}/dagRuns", json=body))["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self._checked(self._client.get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"))["state"])

    def task_states(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances."""
        answer = self._client.get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 100})
        return list(self._checked(answer)["task_instances"])

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """A task's XCom value, or None while there is none."""
        where = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        answer = self._client.get(where)
        return None if answer.status_code == 404 else self._checked(answer)["value"]

    def log_tail(self, dag_id: str, run_id: str, task_id: str, try_number: int, *, lines: int = 15) -> str:
        """The end of a task's log, as text."""
        where = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        content = self._checked(self._client.get(where, headers={"Accept": "application/json"}))["content"]
        return "\n".join(f"    {_line(item)}" for item in content[-lines:])

    @staticmethod
    def _checked(answer: httpx.Response) -> dict[str, Any]:
        if answer.is_success:
            return dict(answer.json())
        raise DemoError(
            f"Airflow answers {answer.status_code} to {answer.request.method} {answer.request.url.path}: "
            f"{answer.text[:500]}"
        )


def _line(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)[:400]
    details = item.get("error_detail") or []
    reasons = [f"{detail.get('exc_type')}: {detail.get('exc_value')}" for detail in details]
    return " ".join([str(item.get("event", "")), *reasons])[:1000]
