"""What of a function travels, what is refused when the DAG is read, and what the runner makes of it on a node."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airpanda.decorators.function import RUNNER, FunctionError, call_of, is_file, result_of, source_of
from airpanda.decorators.panda_task import PandaFunctionOperator, panda_task
from airpanda.operators.checks import list_of

GLOBAL = 3
FILE = {"panda_id": 7, "lfn": "a.txt", "source": "panda:7/a.txt", "size": 1, "sha256": "0" * 64}


def helper() -> int:
    return GLOBAL


def plain(a: int, *, b: list[Path] | None = None) -> dict[str, Any]:
    import math as m

    values = [x * a for x in range(3)]

    def inner(y: float) -> float:
        return m.sqrt(y)

    return {"sum": sum(values), "root": inner(4), "names": [p.name for p in b or []]}


def uses_global() -> int:
    return GLOBAL + helper()


def uses_import() -> str:
    return json.dumps({})


def default_of_the_file(n: int = GLOBAL) -> int:
    return n


def generates() -> Any:
    yield 1


async def waits() -> None:
    return None


class Callable_:
    def __call__(self) -> None:
        return None


def closes_over(value: int) -> Any:
    def inside() -> int:
        return value

    return inside


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x, "write def instead of lambda"),
        (uses_global, "uses GLOBAL, helper of the DAG file, which does not travel: import or define it inside"),
        (uses_import, "uses json of the DAG file"),
        (default_of_the_file, "uses GLOBAL of the DAG file"),
        (closes_over(3), "uses value of the function around it, which does not travel: hand it over as an argument"),
        (generates, "no generator or coroutine"),
        (waits, "no generator or coroutine"),
        (Callable_(), "needs a plain function"),
        (math.sqrt, "needs a plain function"),
        ("text", "needs a plain function"),
    ],
)
def test_what_cannot_travel_is_refused_in_one_sentence_when_the_dag_is_read(function: Any, says: str) -> None:
    with pytest.raises(FunctionError, match=says) as caught:
        panda_task(queue="DEMO", owner="alice")(function)
    assert "\n" not in str(caught.value)


def test_a_function_without_source_is_refused() -> None:
    namespace: dict[str, Any] = {}
    exec("def made():\n    return 1\n", namespace)
    with pytest.raises(FunctionError, match="source of made cannot be read"):
        source_of(namespace["made"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"owner": "a b"}, "owner 'a b' is no name"),
        ({"queue": ""}, "panda_task: queue is empty, and must name a queue"),
        ({"owner": ""}, "panda_task: owner is empty"),
        ({"queue": ["DEMO", "x y"]}, "queue 'x y'"),
        ({"outputs": ["../x"]}, "plain file name"),
        ({"outputs": ["panda_result.json"]}, "plain file name"),
    ],
)
def test_wrong_names_are_refused_when_the_dag_is_read(change: dict[str, Any], says: str) -> None:
    with pytest.raises(FunctionError, match=says):
        panda_task(**{"queue": "DEMO", "owner": "alice"} | change)(plain)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({1}, "argument 1 is of type set"),
        (b"x", "argument 1 is of type bytes"),
        (object(), "argument 1 is of type object"),
        (float("nan"), "argument 1 is nan"),
        ({"x": [1, {2: 3}]}, r"argument 1\['x'\]\[1\] has the key 2"),
        ("x" * 300_000, "more than 262144: hand over files"),
        (Path("/etc/passwd"), "argument 1 is of type PosixPath"),
        ({"k": ["-----BEGIN PRIVATE KEY-----"]}, r"argument 1\['k'\]\[0\] holds a private key"),
    ],
)
def test_arguments_that_json_cannot_carry_are_named(value: Any, says: str) -> None:
    with pytest.raises(FunctionError, match=says):
        call_of(plain, [value], {}, [])


class Lazy(Sequence[Any]):
    """As Airflow hands over what a mapped task returned."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]


def test_what_a_mapped_task_returned_arrives_as_a_list() -> None:
    text, inputs = call_of(plain, [1], {"b": Lazy(FILE, {"x": Lazy(1, 2)})}, [])
    assert json.loads(text)["kwargs"]["b"] == [{"$file": "a.txt"}, {"x": [1, 2]}]
    assert len(inputs) == 1
    assert list_of("inputs", Lazy(FILE)) == [FILE]
    for no_list in ("text", b"bytes", {"a": 1}, 7):
        with pytest.raises(ValueError, match="inputs must be a list"):
            list_of("inputs", no_list)


def test_files_travel_as_inputs_and_arrive_under_names_of_their_own() -> None:
    other = FILE | {"source": "panda:8/a.txt"}
    text, inputs = call_of(plain, [1], {"b": [FILE, other, FILE]}, [])
    assert inputs == [{"lfn": "a.txt", "source": "panda:7/a.txt"}, {"lfn": "1-a.txt", "source": "panda:8/a.txt"}]
    assert [ref["$file"] for ref in json.loads(text)["kwargs"]["b"]] == ["a.txt", "1-a.txt", "a.txt"]


def test_a_mapping_that_only_looks_like_a_file_stays_a_mapping() -> None:
    assert is_file(FILE)
    assert not is_file(FILE | {"extra": 1})
    assert not is_file({"lfn": 1, "source": "x"})


def test_results_name_their_outputs() -> None:
    assert result_of('{"plot": {"$file": "a.txt"}, "n": [1]}', {"a.txt": FILE}) == {"plot": FILE, "n": [1]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cos\nsystem\n(S'id'\ntR.", "no JSON"),
        ('{"plot": {"$file": "b.txt"}}', "names the output 'b.txt', which was not stored"),
        ('{"a": ["x \\u002d----BEGIN PRIVATE KEY\\u002d----"]}', "holds a private key"),
    ],
)
def test_results_that_are_none_are_refused_whatever_the_node_says(text: str, says: str) -> None:
    with pytest.raises(FunctionError, match=says) as caught:
        result_of(text, {"a.txt": FILE})
    assert "\n" not in str(caught.value)


def run(function: Any, *args: Any, outputs: tuple[str, ...] = (), **kwargs: Any) -> tuple[int, str, Any]:
    """As a pilot does it: exit code, log, result."""
    with tempfile.TemporaryDirectory() as name:
        sandbox = Path(name)
        call, inputs = call_of(function, args, kwargs, list(outputs))
        (sandbox / "panda_call.json").write_text(call)
        (sandbox / "panda_function.py").write_text(source_of(function))
        (sandbox / "panda_runner.py").write_text(RUNNER.read_text())
        for file in inputs:
            (sandbox / file["lfn"]).write_text("content")
        argv = [sys.executable, "-I", "-B", "panda_runner.py"]
        done = subprocess.run(argv, cwd=sandbox, capture_output=True, text=True, check=False)
        result = sandbox / "panda_result.json"
        return done.returncode, done.stdout + done.stderr, json.loads(result.read_text()) if result.exists() else None


def test_the_runner_runs_it_in_a_world_of_its_own() -> None:
    code, log, result = run(plain, 2, b=[FILE])
    assert (code, result) == (0, {"sum": 6, "root": 2.0, "names": ["a.txt"]}), log


def raises(n: int) -> None:
    raise ValueError(f"no events\nin {n} files")


def exits() -> None:
    raise SystemExit(0)


def returns_a_set() -> Any:
    return {1, 2}


def returns_nan() -> Any:
    return [float("nan")]


def returns_keys() -> Any:
    return {(1, 2): 3}


def returns_much() -> Any:
    return "x" * 2_000_000


def returns_a_path() -> Any:
    from pathlib import Path as P

    return P("/etc/passwd")


def forgets_its_output() -> Any:
    from pathlib import Path as P

    return P("plot.png")


def returns_a_key() -> Any:
    return {"proxy": ["-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n"]}


def misses_a_module() -> None:
    import there_is_no_such_module  # noqa: F401


@pytest.mark.parametrize(
    ("function", "args", "says"),
    [
        (raises, (3,), "the function raises raised ValueError: no events in 3 files"),
        (exits, (), "the function exits raised SystemExit: 0"),
        (misses_a_module, (), "raised ModuleNotFoundError: No module named 'there_is_no_such_module'"),
        (returns_a_set, (), "returned something that is not JSON"),
        (returns_nan, (), "returned something that is not JSON"),
        (returns_keys, (), "has a key that is no text"),
        (returns_a_key, (), "holds a private key, and results can be read by others"),
        (returns_much, (), "2000002 characters of JSON, more than 1048576: return a file"),
        (returns_a_path, (), "names /etc/passwd, which is none of its outputs (plot.png)"),
        (forgets_its_output, (), "names the output plot.png, which it has not written"),
    ],
)
def test_what_goes_wrong_on_the_node_is_one_sentence_at_the_end_of_the_log(function: Any, args: Any, says: str) -> None:
    code, log, result = run(function, *args, outputs=("plot.png",))
    assert (code, result) == (1, None)
    last = log.rstrip().splitlines()[-1]
    assert last.startswith("panda_task: the function ")
    assert says in last
    if function is raises:
        assert 'File "panda_function.py", line 2, in raises' in log


def test_in_a_dag_it_takes_arguments_of_other_tasks_and_can_be_mapped() -> None:
    with DAG("d", schedule=None) as dag:

        @task
        def before() -> list[int]:
            return [1, 2]

        decorated = panda_task(queue="DEMO", owner="alice", cores=2, outputs=["o.txt"])(plain)
        one = decorated(before())
        decorated.expand(a=before())
    subject = dag.get_task("plain")
    assert one.operator is subject
    assert isinstance(subject, PandaFunctionOperator)
    assert dag.get_task("plain__1").is_mapped
    assert "before" in subject.upstream_task_ids
    subject.op_args = [5]
    (spec,) = subject.specs()
    assert (spec.cores, spec.argv[1]) == (2, "-I")
    assert [o.lfn for o in spec.outputs] == ["o.txt", "panda_result.json"]
    assert "panda_task" not in spec.scripts["panda_function.py"]


def test_the_log_of_a_failed_function_gives_its_own_sentence() -> None:
    subject = PandaFunctionOperator(
        task_id="t", python_callable=plain, op_args=[1], needs={}, payload_owner="alice", panda_queue="DEMO"
    )
    log = "Traceback\npanda_task: the function f raised ValueError: no.\nnoise"
    assert subject.payload_says(log) == "the function f raised ValueError: no."
    assert subject.payload_says("killed") == ""
