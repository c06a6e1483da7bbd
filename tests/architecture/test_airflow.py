"""What Airflow sees of us: one plugin file, and DAGs that only wire."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow import plugins_manager
from airflow._shared.module_loading.file_discovery import find_path_from_directory
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dagbag() -> DagBag:
    return DagBag(dag_folder=str(ROOT / "dags"))


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
def test_airflow_scans_the_plugin_file_and_nothing_else() -> None:
    """Every other .py below plugins/ would be executed as a top-level module that shadows real ones."""
    found = [path for path in find_path_from_directory(str(ROOT / "plugins"), ".airflowignore") if path.endswith(".py")]
    assert found == [str(ROOT / "plugins" / "airpanda_plugin.py")]


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
def test_the_plugin_loads_without_errors_and_without_the_dispatcher() -> None:
    """Airflow hides import errors of plugins, and reads plugins in every process."""
    plugins, errors = plugins_manager._get_plugins()
    assert errors == {}
    assert [plugin.name for plugin in plugins] == ["airpanda"]
    assert "fastapi_apps" not in vars(plugins[0]), "the dispatcher is imported where nobody serves it"


def test_dags_parse_without_errors(dagbag: DagBag) -> None:
    assert dagbag.import_errors == {}
    assert set(dagbag.dags) >= {"production_campaign", "analysis_zmumu"}


def test_dags_survive_serialisation(dagbag: DagBag) -> None:
    for dag in dagbag.dags.values():
        stored = json.dumps(DagSerialization.to_dict(dag))
        assert " object at 0x" not in stored
        assert set(DagSerialization.from_dict(json.loads(stored)).task_dict) == set(dag.task_dict)


def test_every_dag_and_room_says_what_it_is_for(dagbag: DagBag) -> None:
    assert all(dag.doc_md for dag in dagbag.dags.values())
    silent = [
        path.parent.name
        for path in (ROOT / "plugins" / "airpanda").rglob("__init__.py")
        if not path.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert silent == []


def test_every_field_of_a_form_says_what_it_is(dagbag: DagBag) -> None:
    """The form of the web UI shows a parameter's title, and its description below the field."""
    fields = {f"{dag.dag_id}.{name}": param for dag in dagbag.dags.values() for name, param in dag.params.items()}
    assert len(fields) > 15
    said = {name: {"description": param.description} | param.schema for name, param in fields.items()}
    assert [name for name, says in said.items() if not all(map(says.get, ("title", "description", "type")))] == []


def test_every_task_of_a_shipped_dag_says_what_it_does(dagbag: DagBag) -> None:
    """The web UI has it behind the book beside the task's name."""
    tasks = [task for dag in dagbag.dags.values() if "example" not in dag.tags for task in dag.tasks]
    assert len(tasks) > 15
    assert [f"{task.dag_id}.{task.task_id}" for task in tasks if not task.doc_md] == []


def test_the_example_in_the_readme_is_the_one_that_is_tested() -> None:
    example = (ROOT / "dags" / "examples" / "hello_grid.py").read_text()
    assert example.strip() in (ROOT / "README.md").read_text()
