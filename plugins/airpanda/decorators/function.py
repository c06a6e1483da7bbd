"""What of a Python function travels to a worker node: its text, its arguments as JSON, files by reference."""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from airpanda.core.errors import RequestError
from airpanda.decorators.runner import FILE, KEY

MAX_CHARS = 256 * 1024
_KNOWN = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}


class FunctionError(RequestError):
    """A function, an argument or a result that cannot travel; says what to change."""


def source_of(function: Callable[..., Any]) -> str:
    """The text of a function without its decorators, when that text is all it needs.

    Raises:
        FunctionError: a lambda, generator, coroutine or no function; no source; or it uses names that are not its own.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(function, FunctionType):
        raise FunctionError(f"panda_task needs a plain function, and {name} is of type {type(function).__name__}")
    if name == "<lambda>":
        raise FunctionError("panda_task needs a function with a name: write def instead of lambda")
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        raise FunctionError(f"panda_task: {name} must be a plain function that returns, no generator or coroutine")
    if function.__code__.co_freevars:
        raise FunctionError(
            f"panda_task: {name} uses {_listed(function.__code__.co_freevars)} of the function around it, which does"
            " not travel: hand it over as an argument"
        )
    try:
        text = textwrap.dedent(inspect.getsource(function))
        (node,) = ast.parse(text).body
    except (OSError, TypeError, SyntaxError, ValueError) as error:
        raise FunctionError(f"panda_task: the source of {name} cannot be read: {error}") from None
    if not isinstance(node, ast.FunctionDef):
        raise FunctionError(f"panda_task: {name} must be defined by a def of its own")
    _demand_own_names(node)
    lines = text.splitlines()[node.lineno - 1 :]
    return "\n".join(lines) + "\n"


def call_of(
    function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], outputs: list[str]
) -> tuple[str, list[dict[str, str]]]:
    """The runner's ``panda_call.json``, and the inputs for the files among the arguments.

    A file is what a task of ours returns for an output: ``lfn`` and ``source``. The function gets a path.

    Raises:
        FunctionError: names the argument that JSON cannot carry.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    files: dict[str, dict[str, str]] = {}
    positional = [_sent(value, f"argument {n + 1}", files) for n, value in enumerate(bound.args)]
    named = {key: _sent(value, f"argument {key!r}", files) for key, value in bound.kwargs.items()}
    text = json.dumps({"function": function.__name__, "args": positional, "kwargs": named, "outputs": outputs})
    if len(text) > MAX_CHARS:
        raise FunctionError(
            f"the arguments of {function.__name__} are {len(text)} characters of JSON, more than {MAX_CHARS}:"
            " hand over files instead"
        )
    return text, list(files.values())


def result_of(text: str, outputs: Mapping[str, Any]) -> Any:
    """What the function returned; outputs that it named become references, which are arguments for the next one.

    Raises:
        FunctionError: it is no JSON, holds a private key, or names a file that is none of the outputs.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise FunctionError(f"the function's result is no JSON: {error}") from None
    if KEY in json.dumps(found):
        raise FunctionError(
            "the function's result holds a private key: its owner must withdraw that key, and keep keys on the node"
        )
    return _back(found, outputs)


def is_file(value: Any) -> bool:
    """A reference to a stored file, as our operators return them."""
    return (
        isinstance(value, Mapping)
        and {"lfn", "source"} <= set(value) <= {"lfn", "source", "panda_id", "size", "sha256", "adler32"}
        and all(isinstance(value[key], str) for key in ("lfn", "source"))
    )


def _sent(value: Any, where: str, files: dict[str, dict[str, str]]) -> Any:
    if isinstance(value, str) and KEY in value:
        raise FunctionError(f"{where} holds a private key, and arguments can be read by others: keep keys out of DAGs")
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise FunctionError(f"{where} is {value}, which JSON cannot carry")
        return value
    if is_file(value):
        known = files.setdefault(value["source"], {"lfn": _free_name(value["lfn"], files), "source": value["source"]})
        return {FILE: known["lfn"]}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise FunctionError(f"{where} has the key {key!r}, and JSON's keys are texts")
        return {key: _sent(item, f"{where}[{key!r}]", files) for key, item in value.items()}
    # What a mapped task returned is no list, but Airflow's LazyXComSequence.
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_sent(item, f"{where}[{n}]", files) for n, item in enumerate(value)]
    raise FunctionError(
        f"{where} is of type {type(value).__name__}, which JSON cannot carry: hand over numbers, texts, lists, mappings"
        " or files"
    )


def _free_name(lfn: str, files: Mapping[str, Mapping[str, str]]) -> str:
    taken = {file["lfn"] for file in files.values()}
    return lfn if lfn not in taken else f"{len(taken)}-{lfn}"


def _back(value: Any, outputs: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {FILE}:
            name = str(value[FILE])
            if name not in outputs:
                raise FunctionError(f"the function's result names the output {name!r}, which was not stored")
            return outputs[name]
        return {key: _back(item, outputs) for key, item in value.items()}
    return [_back(item, outputs) for item in value] if isinstance(value, list) else value


def _demand_own_names(node: ast.FunctionDef) -> None:
    """Refuse what would be a NameError on the node."""
    bare = _Bare().visit(ast.parse(ast.unparse(node)))
    code = compile(ast.fix_missing_locations(bare), "panda_function.py", "exec", dont_inherit=True)
    foreign = sorted(set(_globals_of(code)) - _KNOWN - {node.name})
    if foreign:
        raise FunctionError(
            f"panda_task: {node.name} uses {_listed(foreign)} of the DAG file, which does not travel: import or define"
            " it inside the function"
        )


class _Bare(ast.NodeTransformer):
    """Without decorators and annotations, which are not evaluated on the node."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list = []
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        self.generic_visit(node)
        return node


def _globals_of(code: CodeType) -> Iterator[str]:
    stored = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_GLOBAL",)}
    for instruction in dis.get_instructions(code):
        loads = {"LOAD_GLOBAL", "LOAD_NAME"} if code.co_name == "<module>" else {"LOAD_GLOBAL"}
        if instruction.opname in loads and instruction.argval not in stored:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _listed(names: Any) -> str:
    return ", ".join(names)


RUNNER = Path(__file__).with_name("runner.py")
