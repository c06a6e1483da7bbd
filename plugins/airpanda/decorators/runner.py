"""Runs one function on a worker node. Shipped as text with the job; standard library only.

Reads ``panda_call.json`` (name, arguments, outputs) and ``panda_function.py``, writes ``panda_result.json``. What goes
wrong is said in one line that begins with ``panda_task:``, below the traceback; exit code 1 then.
"""

from __future__ import annotations
import __future__

import json
import pathlib
import sys
import traceback
from typing import Any, Callable

MAX_RESULT_CHARS = 1024 * 1024
FILE = "$file"
MARK = "panda_task: "
KEY = "PRIVATE KEY-----"
"""In what no result may hold: results go where many may read."""


class Unfit(Exception):
    """The result cannot travel; the text says why."""


def main() -> int:
    """The exit code."""
    call = json.loads(pathlib.Path("panda_call.json").read_text(encoding="utf-8"))
    name = call["function"]
    try:
        result = load(name)(*received(call["args"]), **received(call["kwargs"]))
    except BaseException as error:  # noqa: BLE001 - the outermost frame: sys.exit in a function is its failure, too
        traceback.print_exc()
        return say(f"the function {name} raised {one_line(error)}")
    try:
        text = json.dumps(sent(result, set(call["outputs"])), allow_nan=False)
        if len(text) > MAX_RESULT_CHARS:
            raise Unfit(f"is {len(text)} characters of JSON, more than {MAX_RESULT_CHARS}: return a file")
    except (Unfit, TypeError, ValueError, RecursionError) as error:
        return say(f"the function {name} returned something that {unfit(error)}")
    pathlib.Path("panda_result.json").write_text(text, encoding="utf-8")
    return 0


def load(name: str) -> Callable[..., Any]:
    """The function; annotations stay text, so that they may name what is not here."""
    path = pathlib.Path("panda_function.py")
    flags = __future__.annotations.compiler_flag
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec", flags=flags, dont_inherit=True)
    namespace: dict[str, Any] = {"__name__": "panda_function", "__file__": str(path)}
    exec(code, namespace)  # noqa: S102 - running the owner's function as the owner is what this is for
    function: Callable[..., Any] = namespace[name]
    return function


def received(value: Any) -> Any:
    """Arguments: files become paths."""
    if isinstance(value, dict):
        if set(value) == {FILE}:
            return pathlib.Path(value[FILE])
        return {key: received(item) for key, item in value.items()}
    return [received(item) for item in value] if isinstance(value, list) else value


def sent(value: Any, outputs: set[str]) -> Any:
    """Results: paths of declared outputs become references."""
    if isinstance(value, pathlib.Path):
        if str(value) not in outputs:
            raise Unfit(f"names {value}, which is none of its outputs ({', '.join(sorted(outputs)) or 'none'})")
        if not value.is_file():
            raise Unfit(f"names the output {value}, which it has not written")
        return {FILE: str(value)}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise Unfit(f"has a key that is no text: {key!r}")
            sent(key, outputs)
        return {key: sent(item, outputs) for key, item in value.items()}
    if isinstance(value, str) and KEY in value:
        raise Unfit("holds a private key, and results can be read by others: keep keys on the node")
    return [sent(item, outputs) for item in value] if isinstance(value, (list, tuple)) else value


def unfit(error: Exception) -> str:
    """Why a result cannot travel, as the end of a sentence."""
    if isinstance(error, Unfit):
        return str(error)
    return f"is not JSON ({error}): return numbers, texts, lists, mappings, None, or paths of outputs"


def one_line(error: BaseException) -> str:
    """Class and words of an exception."""
    text = " ".join(str(error).split())
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:500]


def say(sentence: str) -> int:
    """The last line of the log."""
    sys.stdout.flush()
    print(MARK + sentence, file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
