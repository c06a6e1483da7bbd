"""Every DAG of dags/examples does what it shows: its tasks against a real dispatcher, with pilots that are stand-ins.

`hello_grid` is run by the demonstration, too, with everything real.
"""

from __future__ import annotations

import hashlib
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import TaskDeferred
from support.dispatcher import PILOT_DN, job_database, template_database
from support.postgres import postgres
from support.served import Served, served
from support.task_context import Context

from airpanda.decorators.panda_task import PandaFunctionOperator
from airpanda.operators.jobs import PandaTaskOperator

__all__ = ["job_database", "postgres", "served", "template_database"]
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:GitWildMatchPattern")]
EXAMPLES = Path(__file__).resolve().parents[2] / "dags" / "examples"


@pytest.fixture(scope="module")
def dags() -> Any:
    bag = DagBag(dag_folder=str(EXAMPLES))
    assert bag.import_errors == {}
    return bag.dags


def test_every_example_is_run_here(dags: Any) -> None:
    runs = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(dags) == {path.stem for path in EXAMPLES.glob("*.py")} == runs & set(dags)


def submitted(task: PandaTaskOperator, served: Served, **params: Any) -> int:
    """Rendered and deferred; the panda task."""
    task.credential = served.credential()  # it comes from the task before, or is staged
    task.render_template_fields({"params": params})  # type: ignore[typeddict-item]
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(Context(task_id=task.task_id, run_id=str(id(task))))
    return int(deferred.value.trigger.panda_task_id)


def ended(task: PandaTaskOperator, number: int) -> Any:
    return task.execute_complete(Context(), {"panda_task_id": number, "done": True, "note": ""})


def test_hello_grid(dags: Any, served: Served) -> None:
    task = dags["hello_grid"].get_task("hello")
    number = submitted(task, served)
    (job,) = served.finish_all()
    assert job["spec"]["argv"] == ["sh", "-c", "id; date > when.txt"]
    assert [file["lfn"] for file in ended(task, number)["outputs"]] == ["when.txt"]


def test_many_jobs_from_one_template(dags: Any, served: Served) -> None:
    task = dags["many_jobs_from_one_template"].get_task("scan")
    number = submitted(task, served, n_jobs=100)
    jobs = served.claim(PILOT_DN)
    assert [job["spec"]["argv"][-1] for job in jobs] == [f"echo point {n}" for n in range(100)]
    for job in jobs[1:]:
        served.do(served.pilot(PILOT_DN).good_report(job, "starting", "running", "finished"))
    for _ in range(3):  # its attempts
        served.fail(PILOT_DN, jobs[0])
        jobs[:1] = served.claim(PILOT_DN) or jobs[:1]
    assert ended(task, number)["unfinished"] == [jobs[0]["panda_id"]], "a hundredth may fail"


def test_files_at_storage(dags: Any, served: Served) -> None:
    task = dags["files_at_storage"].get_task("count")
    number = submitted(task, served, source="root://se.example.org//d/data.txt", destination="davs://se.example.org/d/")
    (job,) = served.claim(PILOT_DN)
    assert job["spec"]["inputs"][0]["source"] == "root://se.example.org//d/data.txt"
    stored = {"lfn": "lines.txt", "url": "davs://se.example.org/d/lines.txt", "size": 2, "adler32": "0" * 8}
    stored["sha256"] = hashlib.sha256(b"7\n").hexdigest()
    served.do(served.pilot(PILOT_DN).good_report(job, "starting", "running", "finished", stored=[stored]))
    (output,) = ended(task, number)["outputs"]
    assert output["lfn"] == "lines.txt"


def test_when_the_queue_has_room(dags: Any, served: Served) -> None:
    dag = dags["when_the_queue_has_room"]
    seen = dag.get_task("room").execute(Context())
    assert (seen["queue"], seen["state"], seen["waiting"]) == ("DEMO", "online", 0)
    number = submitted(dag.get_task("jobs"), served)
    assert len(served.finish_all()) == 20
    assert ended(dag.get_task("jobs"), number)["finished"] == 20


def test_proxy_staged_by_its_owner(dags: Any, served: Served) -> None:
    dag = dags["proxy_staged_by_its_owner"]
    proxy, hello = dag.get_task("proxy"), dag.get_task("hello")
    assert not proxy.poke(Context()).is_done, "nothing is staged yet"
    staged = served.credential("alice", cred_name="7e" * 16)
    seen = proxy.poke(Context())
    assert seen.is_done
    assert seen.xcom_value["credential_id"] == staged["credential_id"]
    hello.credential = seen.xcom_value
    with pytest.raises(TaskDeferred) as deferred:
        hello.execute(Context(task_id="hello"))
    (job,) = served.finish_all()
    assert (job["spec"]["argv"], job["credential"]["cred_name"]) == (["id"], "7e" * 16)
    ended(hello, deferred.value.trigger.panda_task_id)


def test_after_somebody_elses_jobs(dags: Any, served: Served) -> None:
    number = submitted(dags["when_the_queue_has_room"].get_task("jobs"), served)
    theirs = dags["after_somebody_elses_jobs"].get_task("theirs")
    theirs.render_template_fields({"params": {"panda_task_id": number, "at_least": 15}})
    assert not theirs.poke(Context()).is_done
    served.finish_all()
    seen = theirs.poke(Context())
    assert (bool(seen.is_done), seen.xcom_value) == (True, {"finished": 20})


def run_here(served: Served, sandbox: Path) -> None:
    """As a pilot does it, but under this account: inputs in, the program, outputs out."""
    (job,) = served.claim(PILOT_DN)
    pilot = served.pilot(PILOT_DN)
    served.run(PILOT_DN, job)
    sandbox.mkdir()
    for name, text in job["spec"]["scripts"].items():
        (sandbox / name).write_text(text)
    for each in job["spec"]["inputs"]:
        (sandbox / each["lfn"]).write_bytes(served.do(pilot.get_input(job, each["lfn"])).content)
    subprocess.run([sys.executable, *job["spec"]["argv"][1:]], cwd=sandbox, check=True)
    for each in job["spec"]["outputs"]:
        assert served.do(pilot.put(job, each["lfn"], (sandbox / each["lfn"]).read_bytes())).is_success
    served.do(pilot.good_report(job, "finished"))


def test_function_on_the_grid(dags: Any, served: Served, tmp_path: Path) -> None:
    dag, throw = dags["function_on_the_grid"], runpy.run_path(str(EXAMPLES / "function_on_the_grid.py"))["throw"]
    assert dag.get_task("throw").is_mapped
    combine, results = dag.get_task("combine"), []
    for n in (1000, 2000):  # as Airflow makes one task for each element
        one = PandaFunctionOperator(python_callable=throw.function, op_args=[n], **throw.kwargs)
        number = submitted(one, served)
        run_here(served, tmp_path / str(n))
        results.append(ended(one, number))
    assert [result["points"]["lfn"] for result in results] == ["points.json", "points.json"]
    combine.op_args = (results,)
    number = submitted(combine, served)
    run_here(served, tmp_path / "combined")
    assert ended(combine, number) == pytest.approx(3.14, abs=0.3)
