"""Many jobs from one template: ``{n}`` and the item's fields are filled in, other braces stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airpanda.messages import MAX_JOBS_PER_SUBMISSION
from airpanda.operators.checks import rendered

_WORD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([^{}]*))?\}")


def expand(template: Mapping[str, Any], items: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """One job per item.

    In every text of the template, except its ``scripts``, ``{n}`` becomes the position from 0, ``{item}`` the item, and
    where the item is a mapping ``{key}`` its value; a format may follow a colon, as in ``{n:05d}``.

    Raises:
        ValueError: a format does not fit its value; names both.
    """
    for n, item in enumerate(items):
        values = {"n": n, "item": item, **(item if isinstance(item, Mapping) else {})}
        yield {key: value if key == "scripts" else _fill(value, values) for key, value in template.items()}


def as_texts(argv: Any) -> Any:
    """Numbers as texts: native templates make numbers of what looks like one."""
    if not isinstance(argv, (list, tuple)):
        return argv
    return [str(word) if isinstance(word, (int, float)) and not isinstance(word, bool) else word for word in argv]


def items_of(count: Any, over: Any) -> Sequence[Any]:
    """What the template is expanded over.

    Raises:
        ValueError: neither or both are given, or it is not 1 to 100 000.
        TypeError: ``over`` is no list.
    """
    if (count is None) == (over is None):
        raise ValueError("template needs either count, a number, or over, a list")
    if over is not None and (isinstance(over, (str, Mapping)) or not isinstance(over, Sequence)):
        raise TypeError(f"over must be a list, and {rendered(over)}")
    items: Sequence[Any] = range(_number("count", count)) if over is None else over
    demand_number(len(items))
    return items


def _number(field: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{field} must be a number, and {rendered(value)}") from None


def demand_number(n: int) -> None:
    """Raises:
    ValueError: there are no jobs, or more than one submission may have.
    """
    if not 1 <= n <= MAX_JOBS_PER_SUBMISSION:
        raise ValueError(f"jobs: a panda task has 1 to {MAX_JOBS_PER_SUBMISSION} jobs, and this one has {n}")


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return _WORD.sub(lambda found: _word(found, values), value) if "{" in value else value
    if isinstance(value, Mapping):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fill(item, values) for item in value]
    return value


def _word(found: re.Match[str], values: Mapping[str, Any]) -> str:
    name, form = found[1], found[2] or ""
    if name not in values:
        return found[0]
    try:
        return format(values[name], form)
    except ValueError as error:
        raise ValueError(f"template: {found[0]} does not fit {values[name]!r}: {error}") from None
