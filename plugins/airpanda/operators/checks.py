"""What can be said of an operator's arguments: when the DAG file is read, and of templates when they are rendered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from airpanda.messages import InputFile, JobSpec, OutputFile

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,249}")
_TEMPLATE = re.compile(r"\{\{|\{%")


def is_template(value: Any) -> bool:
    """Whether it is to be rendered, or comes from another task: nothing can be said about it yet."""
    if isinstance(value, str):
        return _TEMPLATE.search(value) is not None
    if isinstance(value, Mapping):
        return any(map(is_template, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(is_template, value))
    return not (value is None or isinstance(value, (int, float)))


def demand_names(owner: Any, queue: Any, *, fields: tuple[str, str] = ("payload_owner", "panda_queue")) -> None:
    """Raises:
    ValueError: the owner, or a queue, is no name.
    """
    if not is_template(owner):
        _demand_name(fields[0], owner, "an owner")
    names = [queue] if isinstance(queue, str) or not isinstance(queue, Sequence) else queue
    if not names:
        raise ValueError(f'{fields[1]} names no queue: give one, several, or "*" for any that fits')
    for name in names:
        if not is_template(name) and name != "*":
            _demand_name(fields[1], name, "a queue")


def demand_files(inputs: Any, outputs: Any) -> None:
    """Raises:
    ValueError: one of them cannot be; names it.
    """
    ways = (
        ("inputs", InputFile.model_validate, as_input, inputs),
        ("outputs", OutputFile.model_validate, as_output, outputs),
    )
    for field, validate, as_one, given in ways:
        for n, each in enumerate(given if isinstance(given, (list, tuple)) else []):
            if not is_template(each):
                checked(f"{field}[{n}]", validate, as_one(each))


def as_output(item: Any) -> Any:
    """A name stands for an output of that name."""
    return {"lfn": item} if isinstance(item, str) else item


def as_input(item: Any) -> Any:
    """An output of another task, as XCom has it, is an input as it is."""
    return {key: item[key] for key in item if key != "panda_id"} if isinstance(item, Mapping) else item


def job_spec(where: str, job: Any) -> JobSpec:
    """A job as a validated message.

    Raises:
        ValueError: it is none; says what of it is wrong.
    """
    if not isinstance(job, (Mapping, JobSpec)):
        raise ValueError(f"{where} must be a mapping, and {rendered(job)}")
    spec: JobSpec = checked(where, JobSpec.model_validate, job)
    return spec


def checked(where: str, validate: Callable[[Any], Any], value: Any) -> Any:
    """What ``validate`` makes of it. Raises ValueError: names the first thing that is wrong, not its value."""
    try:
        return validate(value)
    except ValidationError as error:
        raise ValueError(f"{where}: {first_of(error)}") from None


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, in one line and without its value, which may be secret."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    where = ".".join(str(part) for part in errors[0]["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {errors[0]['msg']}{more}".removeprefix(": ")


def list_of(field: str, value: Any) -> Sequence[Any]:
    """A list as it is, or what a mapped task returned (Airflow's LazyXComSequence) as one; nothing is an empty one.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    raise ValueError(f"{field} must be a list, and {rendered(value)}")


def rendered(value: Any) -> str:
    """What a template has become, as the end of a sentence; without its value."""
    if value is None or value in ("", [], {}, ()):
        return f"is {value!r}: its template has rendered to nothing"
    return f"is of type {type(value).__name__}"


def _demand_name(field: str, name: Any, what: str) -> None:
    if not name:
        raise ValueError(f"{field} is empty, and must name {what}")
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise ValueError(f"{field} {name!r} is no name of {what}")
