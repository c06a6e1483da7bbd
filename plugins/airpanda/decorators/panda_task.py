"""``@panda_task``: a Python function becomes a task that runs on the grid as its owner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow.sdk.bases.decorator import DecoratedOperator, task_decorator_factory

from airpanda.core.errors import ConflictError, NotFoundError
from airpanda.decorators.function import RUNNER, FunctionError, call_of, result_of, source_of
from airpanda.decorators.runner import MARK
from airpanda.hooks.panda import PandaHook
from airpanda.messages import JobSpec
from airpanda.operators import checks
from airpanda.operators.jobs import PandaTaskOperator

RESULT = "panda_result.json"
_NEEDS = frozenset({"cores", "memory_mib", "disk_mib", "walltime_s", "priority", "max_attempt", "features", "env"})


def panda_task(
    function: Callable[..., Any] | None = None,
    *,
    queue: str | Sequence[str],
    owner: str,
    outputs: Sequence[str] = (),
    python: str = "python3",
    multiple_outputs: bool | None = None,
    **options: Any,
) -> Any:
    """Run the decorated function on the grid, as ``owner``, in one job.

    The function's text travels, so it imports what it needs inside. Arguments and result are JSON; a file reference
    (what a task of ours returns for an output) arrives as :class:`pathlib.Path`, and a returned path of one of
    ``outputs`` becomes such a reference. Nothing that comes back from a node is ever unpickled. Map it with
    ``.expand``, which makes one job for each element; for thousands, ``PandaTaskOperator`` with a template is faster.

    Args:
        queue: a PanDA queue, a list of them, or ``"*"`` for any that fits.
        owner: short name of the payload owner.
        outputs: names of the files that the function leaves in its working directory.
        python: the node's interpreter; it runs isolated from the environment and from a user's packages (``-I``).
        options: cores, memory_mib, disk_mib, walltime_s, priority, max_attempt, features and env of the job, or
            anything that ``PandaTaskOperator`` and every Airflow task takes (credential, sandbox, rerun, retries, …).

    Raises:
        FunctionError: when the DAG is read: the function cannot travel, or queue, owner or an output is no name.
    """
    try:
        checks.demand_names(owner, queue, fields=("owner", "queue"))
    except ValueError as error:
        raise FunctionError(f"panda_task: {error}") from None
    for name in outputs:
        if checks.NAME.fullmatch(name) is None or name == RESULT:
            raise FunctionError(f"panda_task: the output {name!r} must be a plain file name, and not {RESULT}")
    needs = {key: options.pop(key) for key in _NEEDS & set(options)}
    decorate = task_decorator_factory(
        multiple_outputs=multiple_outputs,
        decorated_operator_class=PandaFunctionOperator,
        payload_owner=owner,
        panda_queue=queue,
        declared=list(outputs),
        python=python,
        needs=needs,
        **options,
    )

    def checked(given: Callable[..., Any]) -> Any:
        source_of(given)
        return decorate(given)

    return checked if function is None else checked(function)


class PandaFunctionOperator(DecoratedOperator, PandaTaskOperator):
    """What ``@panda_task`` makes of a function: one job that runs it and brings its result into XCom.

    XCom has the result, under ``outputs`` the references of all declared outputs.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields, "payload_owner", "panda_queue", "credential", "needs", "sandbox",
    )  # fmt: skip
    custom_operator_name = "@panda_task"

    def __init__(
        self, *, declared: Sequence[str] = (), python: str = "python3", needs: Mapping[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.declared = list(declared)
        self.python = python
        self.needs = dict(needs)

    def execute(self, context: Any) -> Any:
        """Submit and defer. Raises as ``PandaTaskOperator.execute``."""
        return PandaTaskOperator.execute(self, context)

    def specs(self) -> list[JobSpec]:
        """The one job."""
        call, inputs = call_of(self.python_callable, self.op_args, self.op_kwargs, self.declared)
        job = {
            "job_name": self.task_id.replace("/", "-")[:250],
            "argv": [self.python, "-I", "-B", "panda_runner.py"],
            "scripts": {
                "panda_runner.py": RUNNER.read_text(encoding="utf-8"),
                "panda_function.py": source_of(self.python_callable),
                "panda_call.json": call,
            },
            "inputs": inputs,
            "outputs": [{"lfn": name} for name in (*self.declared, RESULT)],
        }
        return [JobSpec.model_validate(job | self.needs)]

    def conclude(self, context: Any, task_id: int) -> Any:
        """The function's result. Raises as ``PandaTaskOperator.execute_complete``."""
        found = super().conclude(context, task_id)
        outputs = {file["lfn"]: file for file in found["outputs"] if file["lfn"] != RESULT}
        context["ti"].xcom_push(key="outputs", value=list(outputs.values()))
        return result_of(self._result_of(found["first_panda_id"]), outputs)

    def _result_of(self, panda_id: int) -> str:
        try:
            return PandaHook(self.panda_conn_id).get_text(f"/v1/file/{panda_id}/{RESULT}")
        except (NotFoundError, ConflictError) as error:
            raise FunctionError(
                f"the function has run (PandaID {panda_id}), but its result is not there: {error}. To run it again,"
                ' give the task rerun="all" and clear it'
            ) from error

    def payload_says(self, log: str) -> str:
        """The runner's sentence on what went wrong in the function."""
        said = [line for line in log.splitlines() if line.startswith(MARK)]
        return f"{said[-1].removeprefix(MARK).rstrip('.')}." if said else ""
