"""The work of the demonstration: a campaign by the robot, then an analysis by Alice and the same by Bob."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx

from airpanda.core.clock import from_wire
from airpanda.hooks import calls
from airpanda.hooks.calls import Call
from airpanda.messages import AttemptView, JobView
from airpanda_demo.airflow_api import FINAL, AirflowApi
from airpanda_demo.errors import DemoError
from airpanda_demo.progress import Progress
from airpanda_demo.report import JobLine, Peak
from airpanda_demo.site import QUEUE, Site

R = TypeVar("R")

DAGS = ("production_campaign", "analysis_zmumu", "hello_grid")
JOBS, EVENTS_PER_JOB, PILOTS = 20, 500, 2
ANALYSTS = ("alice", "bob")
TIMEOUT_S = 240.0
_POLL_S = 0.5
_PILOT_ENDS = frozenset({"benched", "finished", "failed", "lost"})
_SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Run:
    """A DAG run, and the task in it that stands for jobs."""

    dag_id: str
    run_id: str
    task_id: str
    owner: str


class Dispatcher:
    """The dispatcher behind the api-server, with the demonstration's own client token."""

    def __init__(self, site: Site) -> None:
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{site.ports.api}/panda/",
            headers={"Authorization": f"Bearer {site.client_token.reveal()}"},
            timeout=30.0,
            trust_env=False,
        )

    def send(self, call: Call[R]) -> R:
        """Raises DemoError when the dispatcher refuses."""
        answer = self._client.request(call.method, call.path.lstrip("/"), params=dict(call.params) or None)
        return call.reply.validate_json(self._checked(answer).content)

    def file(self, job: JobView, lfn: str) -> bytes:
        """An output's content."""
        return self._checked(self._client.get(f"v1/file/{job.panda_id}/{lfn}")).content

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def _checked(answer: httpx.Response) -> httpx.Response:
        if not answer.is_success:
            raise DemoError(
                f"the dispatcher answers {answer.status_code} to {answer.request.url.path}: {answer.text[:300]}"
            )
        return answer


class Work:
    """Runs the DAGs over Airflow's REST API and collects what came out."""

    def __init__(self, site: Site, api: AirflowApi, progress: Progress) -> None:
        self._site = site
        self._api = api
        self._progress = progress
        self._dispatcher = Dispatcher(site)
        self._runs: list[Run] = []

    def run(self) -> None:
        """Everything, one after the other.

        Raises:
            DemoError: a run failed or took too long; with the end of the failed task's log.
        """
        with self._progress.phase("DAGs read"):
            self._wait_for_dags()
        with self._progress.phase("production"):
            parameters = {"queue": QUEUE, "owner": "robot", "n_jobs": JOBS, "events_per_job": EVENTS_PER_JOB}
            parameters |= {"first_seed": 1, "validate": False}  # the analyses below are its validation
            campaign = self._trigger("production_campaign", "evgen", "robot", {**parameters, "n_pilots": PILOTS})
            hello = self._trigger("hello_grid", "hello", "alice", {})
            self._wait([campaign, hello])
        with self._progress.phase("analysis"):
            files = self._api.xcom(campaign.dag_id, campaign.run_id, campaign.task_id)["outputs"]
            inputs = [{"lfn": file["lfn"], "source": file["source"]} for file in files]
            self._wait(
                [
                    self._trigger("analysis_zmumu", "peak", owner, {"queue": QUEUE, "owner": owner, "inputs": inputs})
                    for owner in ANALYSTS
                ]
            )

    def jobs(self) -> list[JobLine]:
        """The jobs of all runs so far, by PandaID."""
        found = [JobLine.of(job) for run in self._runs for job in self._jobs(run)]
        return sorted(found, key=lambda job: job.panda_id)

    def fetch_peaks(self) -> list[Peak]:
        """Store the analyses' pictures and numbers."""
        results = self._site.place.results
        results.mkdir(mode=0o755, exist_ok=True)
        peaks = []
        for run in self._runs:
            for job in self._jobs(run) if run.task_id == "peak" else ():
                picture = results / f"zmumu-{run.owner}.png"
                picture.write_bytes(self._dispatcher.file(job, "zmumu.png"))
                numbers = self._dispatcher.file(job, "result.json")
                (results / f"zmumu-{run.owner}.json").write_bytes(numbers)
                peaks.append(Peak(run.owner, str(picture), json.loads(numbers)))
        return peaks

    def timeline(self) -> list[dict[str, Any]]:
        """For each run's jobs, seconds since the Airflow task started: first payload, last job's end, task's end.

        The dispatcher's and Airflow's clocks are one here: they share a machine.
        """
        return [
            _lags(run, task, [attempt for job in self._jobs(run) for attempt in job.attempts])
            for run in self._runs
            for task in self._api.task_states(run.dag_id, run.run_id)
            if task["task_id"] == run.task_id and task["state"] == "success"
        ]

    def __enter__(self) -> Work:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._dispatcher.close()

    def _wait_for_dags(self) -> None:
        deadline = time.monotonic() + 60.0
        waiting = set(DAGS)
        while waiting := {dag_id for dag_id in waiting if not self._api.knows(dag_id)}:
            if errors := self._api.import_errors():
                raise DemoError(f"Airflow cannot read a DAG: {errors[0]}")
            if time.monotonic() > deadline:
                raise DemoError(f"Airflow does not know the DAG {min(waiting)} after 60 s")
            time.sleep(_POLL_S)

    def _trigger(self, dag_id: str, task_id: str, owner: str, parameters: Mapping[str, Any]) -> Run:
        run = Run(dag_id, self._api.trigger(dag_id, parameters), task_id, owner)
        self._runs.append(run)
        self._progress.say(f"{dag_id} started, owner {self._site.dn(owner)}")
        return run

    def _wait(self, runs: Sequence[Run]) -> None:
        start = time.monotonic()
        said, say_at = "", start
        waiting = list(runs)
        while waiting:
            for run in list(waiting):
                state = self._api.run_state(run.dag_id, run.run_id)
                if state not in FINAL:
                    continue
                if state != "success":
                    raise DemoError(self._why(run))
                waiting.remove(run)
                self._progress.say(f"{run.dag_id} of {run.owner}: success")
            now = time.monotonic()
            if waiting and now >= say_at:
                say_at = now + _SAY_EVERY_S
                self._check_pilots()
                if (text := "; ".join(map(self._describe, waiting))) != said:
                    said = text
                    self._progress.say(text)
            if waiting and now - start > TIMEOUT_S:
                raise DemoError(
                    f"{waiting[0].dag_id} is not finished after {TIMEOUT_S:.0f} s: {self._describe(waiting[0])}"
                )
            time.sleep(_POLL_S if waiting else 0)

    def _check_pilots(self) -> None:
        """Nothing moves when no pilot is left: say at once why."""
        pilots = []
        for run in self._runs:
            batch = self._api.xcom(run.dag_id, run.run_id, "send_pilots")
            if batch is None:
                return
            pilots += self._dispatcher.send(calls.batch(int(batch["batch_id"]))).pilots
        # A pilot that ends says so before its last job's Airflow task has noticed.
        jobs = [job for run in self._runs for job in self._jobs(run)]
        if pilots and all(p.state in _PILOT_ENDS for p in pilots) and not all(job.status.is_final for job in jobs):
            last = pilots[-1]
            raise DemoError(
                f"no pilot is left for the jobs that wait: pilot {last.pilot_id} is {last.state} ({last.reason}); "
                f"its log is in {self._site.place.logs / 'pilots'}"
            )

    def _describe(self, run: Run) -> str:
        """The run's jobs by state, or its tasks by state before there are jobs."""
        jobs = Counter(job.status.value for job in self._jobs(run))
        if not jobs:
            tasks = Counter(str(task["state"] or "waiting") for task in self._api.task_states(run.dag_id, run.run_id))
            return f"{run.dag_id} of {run.owner}: tasks " + _counts(tasks)
        return f"{run.dag_id} of {run.owner}: jobs " + _counts(jobs)

    def _jobs(self, run: Run) -> list[JobView]:
        task_id = self._api.xcom(run.dag_id, run.run_id, run.task_id, "panda_task_id")
        return [] if task_id is None else self._dispatcher.send(calls.jobs(int(task_id)))

    def _why(self, run: Run) -> str:
        tasks = self._api.task_states(run.dag_id, run.run_id)
        for task in tasks:
            if task["state"] == "failed":
                end = self._api.log_tail(run.dag_id, run.run_id, task["task_id"], task["try_number"])
                return f"{run.dag_id} failed in its task {task['task_id']}; the end of its log:\n{end}"
        return f"{run.dag_id} failed"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{state} {n}" for state, n in sorted(counter.items()))


def _lags(run: Run, task: Mapping[str, Any], attempts: Sequence[AttemptView]) -> dict[str, Any]:
    start = from_wire(task["start_date"])
    times = {
        "first_payload_s": min(a.started_at for a in attempts if a.started_at is not None),
        "last_job_final_s": max(a.ended_at for a in attempts if a.ended_at is not None),
        "task_end_s": from_wire(task["end_date"]),
    }
    seconds = {name: round((at - start).total_seconds(), 3) for name, at in times.items()}
    return {"dag_id": run.dag_id, "task_id": run.task_id, "owner": run.owner, **seconds}
