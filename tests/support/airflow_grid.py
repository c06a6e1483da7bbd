"""Runs of the test DAGs in :mod:`support.airflow_dags`, and pilots that do with their jobs what a test says."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.airflow_rig import Rig
from support.standin_pilots import USER_FAULT


@pytest.fixture(name="grid")
def grid_fixture(airflow_rig: Rig) -> Iterator[Grid]:
    grid = Grid(airflow_rig)
    yield grid
    grid.end()


_ENDED = ("success", "failed")


class Grid:
    """Runs of the test DAGs, and pilots that do with their jobs what a test says."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.dn = rig.pki.dn("pilot")
        self._runs: list[tuple[str, str]] = []

    def start(self, dag_id: str = "grid", **conf: Any) -> str:
        """A run whose task ``work`` waits for its jobs; its id."""
        run_id = self.rig.client.start(dag_id, **conf)
        self._runs.append((dag_id, run_id))
        self.waits(run_id, dag_id=dag_id)
        return run_id

    def adopt(self, dag_id: str, run_id: str) -> str:
        """A run that somebody else has started ends with the test, too; its id."""
        self._runs.append((dag_id, run_id))
        return run_id

    def start_held(self, dag_id: str, *, pid_file: str, **conf: Any) -> str:
        """A run whose task ``work`` has submitted and stays a running process, whose pid is in the file."""
        run_id = self.rig.client.start(dag_id, pid_file=pid_file, **conf)
        self._runs.append((dag_id, run_id))
        self.rig.wait(lambda: Path(pid_file).exists() and Path(pid_file).read_text())
        return run_id

    def waits(self, run_id: str, tries: int = 1, dag_id: str = "grid") -> None:
        self.rig.client.wait_for(dag_id, run_id, "work", "deferred", tries=tries)

    def watched(self, run_id: str, dag_id: str = "grid") -> None:
        """The triggerer has taken the waiting task over: from now on it hears of what a person does with it."""
        self.rig.wait(lambda: "jobs final (" in self.log(run_id, 1, dag_id), why="the trigger's first look")

    def ends(self, run_id: str, state: str, tries: int = 1, dag_id: str = "grid") -> dict[str, Any]:
        return self.rig.client.wait_for(dag_id, run_id, "work", state, tries=tries)

    def clear(self, run_id: str, dag_id: str = "grid") -> None:
        """As a person does who has seen the run end, where the task has: a clear in the same second may meet a
        scheduler that still ends the run, and with it what was cleared.
        """
        if self.rig.client.task(dag_id, run_id, "work")["state"] in _ENDED:
            self.rig.wait(lambda: self.rig.client.run_state(dag_id, run_id) in _ENDED, why="the run's end")
        self.rig.client.clear(dag_id, run_id, "work", downstream=True)

    def claim(self, run_id: str, dag_id: str = "grid", queue: str = "DEMO") -> list[dict[str, Any]]:
        """What waits of this run, claimed; nothing else may wait."""
        jobs = self.rig.pilots.claim(self.dn, queue)
        known = {row[0] for row in self.rig.jobs_of(run_id, "work", dag_id)}
        assert {job["panda_id"] for job in jobs} <= known
        return jobs

    def finish(self, *jobs: dict[str, Any], queue: str = "DEMO", log: bytes = b"") -> None:
        for job in jobs:
            self.rig.pilots.finish(self.dn, job, queue, log=log)

    def fail(self, *jobs: dict[str, Any], error: dict[str, Any] = USER_FAULT, log: bytes = b"") -> None:
        for job in jobs:
            self.rig.pilots.fail(self.dn, job, error=error, log=log)

    def states(self, run_id: str, dag_id: str = "grid", task_id: str = "work") -> dict[int, tuple[str, int]]:
        """PandaID → status and attempt."""
        return {row[0]: (row[1], row[2]) for row in self.rig.jobs_of(run_id, task_id, dag_id)}

    def log(self, run_id: str, tries: int = 1, dag_id: str = "grid") -> str:
        return self.rig.client.log(dag_id, run_id, "work", tries)

    def end(self) -> None:
        """Leave nothing that waits, for the next test."""
        self.rig.sql(
            "UPDATE panda_job SET status = 'cancelled', changed_by = 'tests', pilot_id = NULL, lease_digest = NULL,"
            " lease_expires_at = NULL, command = '' WHERE status NOT IN ('finished', 'failed', 'cancelled', 'closed')"
        )
        for dag_id, run_id in self._runs:
            self.rig.client.http.patch(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", json={"state": "failed"})

    def finish_what_is_left(self, run: str, jobs: list[dict[str, Any]], dag_id: str = "grid") -> None:
        """As pilots do: what is still theirs goes on, what was taken from them ends, what waits is claimed."""
        pilot = self.rig.pilots.pilot(self.dn)
        held = {job["panda_id"]: job for job in jobs}
        deadline = time.monotonic() + 240
        while any(status != "finished" for status, _ in self.states(run, dag_id).values()):
            assert time.monotonic() < deadline, self.states(run, dag_id)
            held |= {job["panda_id"]: job for job in self.claim(run, dag_id)}
            for panda_id, job in list(held.items()):
                reply = self.rig.pilots.do(pilot.report(job, "running"))
                if reply.status_code == 409:  # fenced off
                    del held[panda_id]
                elif reply.json()["command"] == "tobekilled":
                    self.rig.pilots.do(pilot.report(job, "cancelled"))
                    del held[panda_id]
                elif self.status_of(job) == "running":
                    self.finish(job)
                    del held[panda_id]

    def status_of(self, job: dict[str, Any]) -> str:
        ((status,),) = self.rig.sql("SELECT status FROM panda_job WHERE panda_id = %s", job["panda_id"])
        return str(status)

    def assert_never_doubled(self, run: str, dag_id: str = "grid") -> None:
        """Each job finished once; no attempt began before the one before it had ended."""
        for panda_id in self.states(run, dag_id):
            attempts = self.rig.sql(
                "SELECT status, sent_at, ended_at FROM panda_attempt WHERE panda_id = %s ORDER BY attempt_nr", panda_id
            )
            assert [status for status, _, _ in attempts].count("finished") == 1, attempts
            for (_, _, ended), (_, sent, _) in itertools.pairwise(attempts):
                assert ended is not None
                assert ended <= sent
        assert (
            len(
                {
                    row[0]
                    for row in self.rig.sql(
                        "SELECT task_id FROM panda_task WHERE ti->>'run_id' = %s AND ti->>'dag_id' = %s", run, dag_id
                    )
                }
            )
            == 1
        )
