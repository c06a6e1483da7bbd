"""The example of a job whose files lie in a storage: what it submits is what the dispatcher takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag

from airpanda.operators.jobs import PandaJobOperator

DAG = Path(__file__).resolve().parents[2] / "dags" / "examples" / "files_at_storage.py"


@pytest.fixture
def count() -> PandaJobOperator:
    bag = DagBag(dag_folder=str(DAG))
    assert bag.import_errors == {}
    task = bag.dags["files_at_storage"].get_task("count")
    assert isinstance(task, PandaJobOperator)
    return task


def render(task: PandaJobOperator, **params: str) -> Any:
    task.credential = {"credential_id": 1}  # it comes from the task before
    task.render_template_fields({"params": params})  # type: ignore[typeddict-item]
    return task.specs()[0]


def test_a_place_that_a_pilot_cannot_reach_is_refused_at_once(count: PandaJobOperator) -> None:
    with pytest.raises(ValueError, match=r"^the job: inputs\.0\.source: [^\n]+$"):
        render(count, source="ftp://se.example.org/data.txt", destination="davs://se.example.org/d/")


def test_both_files_are_where_the_run_says(count: PandaJobOperator) -> None:
    spec = render(count, source="root://se.example.org//d/data.txt", destination="file:///data/alice/")
    assert [(each.lfn, each.source) for each in spec.inputs] == [("data.txt", "root://se.example.org//d/data.txt")]
    assert [(each.lfn, each.destination) for each in spec.outputs] == [("lines.txt", "file:///data/alice/")]
