"""The pilot factory's DAG in a real Airflow: a task for each queue, which looks again and again and holds no slot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.airflow_rig import QUEUES, Rig, postgres, running_rig
from support.postgres import Server

__all__ = ["postgres"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
DAG = "panda_pilot_factory"


@pytest.fixture(scope="module", name="rig")
def airflow_with_a_factory(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(postgres, tmp_path_factory.mktemp("airflow"), more_dags=["panda_pilot_factory.py"]) as rig:
        yield rig


def test_each_queue_is_looked_at_every_minute_by_a_mapped_task_without_a_slot(rig: Rig) -> None:
    """By its own schedule. The queues' files do not let the factory send pilots: it says so, and does all else."""

    def runs() -> Any:
        return rig.client.http.get(f"/api/v2/dags/{DAG}/dagRuns").json().get("dag_runs")

    def looks() -> dict[str, int]:
        found = rig.sql("SELECT queue, fence FROM panda_factory WHERE cycled_at > '-infinity'")
        return {str(queue): int(fence) for queue, fence in found}

    def tasks() -> list[tuple[str, int]]:
        found = [rig.client.task(DAG, run, "factory", n) for n in range(len(QUEUES))]
        return [(each["state"], each["try_number"]) for each in found]

    run = rig.wait(runs, 180, why="the scheduled run")[0]["dag_run_id"]

    def looked() -> bool:
        return set(looks()) == set(QUEUES)

    rig.wait(lambda: looked() or rig.client.run_state(DAG, run) == "failed", 240, why="the first look")
    if not looked():  # the scheduler was there long before the api-server, on a busy machine
        run = rig.client.trigger(DAG, {})
        rig.wait(looked, 240, why="the first look")
    for (decisions,) in rig.sql("SELECT decisions FROM panda_factory"):
        assert decisions[-1] == "nothing: [factory] enabled is false in its file"
    rig.wait(lambda: {state for state, _ in tasks()} == {"deferred"}, 180, why="the wait between two looks")
    before = tasks()
    rig.wait(lambda: min(looks().values()) > 1, 240, why="the second look")
    assert [tries for _, tries in tasks()] == [tries for _, tries in before], "the same task instances"
