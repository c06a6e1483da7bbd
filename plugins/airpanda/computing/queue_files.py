"""What a person asks of queue files: are they right, and what do they come to."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpanda.computing.queues import PandaQueue, line_of, load_queue
from airpanda.core.errors import ConfigurationError

_LOOKS_SECRET = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH", re.IGNORECASE)
NOT_SHOWN = "(not shown)"


@dataclass(frozen=True)
class Value:
    """One effective value of a queue, and where it comes from: ``file:line``, or ``default``."""

    section: str
    key: str
    value: Any
    where: str


def problems(directory: Path) -> tuple[dict[str, PandaQueue], list[str]]:
    """The queues of a directory that are right, and a sentence for everything that is wrong, in all files.

    Raises:
        ConfigurationError: there is no such directory, or no queue file in it.
    """
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is no directory: name the folder that holds queues/ by --include")
    paths = sorted(directory.glob("*.toml"))
    if not paths:
        raise ConfigurationError(f"{directory} holds no queue file: each queue is one file named <NAME>.toml")
    queues: dict[str, PandaQueue] = {}
    wrong: list[str] = []
    for path in paths:
        try:
            queue = load_queue(path)
        except ConfigurationError as error:
            wrong.append(str(error))
            continue
        other = next((name for name in queues if name.casefold() == queue.name.casefold()), None)
        if other is not None:
            line = line_of(path.read_text(encoding="utf-8"), "queue", "name")
            wrong.append(f"{path}:{line}: [queue] name = {queue.name!r} is already defined as {other!r}; rename one")
            continue
        queues[queue.name] = queue
    return queues, wrong


def effective(path: Path) -> Iterator[Value]:
    """Every value of one queue file as it will be used. What looks like a secret is not told.

    Raises:
        ConfigurationError: the file is wrong.
    """
    queue = load_queue(path)
    text = path.read_text(encoding="utf-8")
    written = tomllib.loads(text)
    for section, table in _sections(queue.to_wire()):
        there = written.get("ces", {}).get(section[4:], {}) if section.startswith("ces.") else written.get(section, {})
        for key, value in table.items():
            is_written = key in there
            hidden = section == "environment" and _LOOKS_SECRET.search(key) is not None
            where = f"{path.name}:{line_of(text, section, key)}" if is_written else "default"
            yield Value(section, key, NOT_SHOWN if hidden else value, where)


def _sections(wire: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for section, table in wire.items():
        if section == "ces":
            yield from ((f"ces.{name}", each) for name, each in table.items())
        else:
            yield section, table


def table(values: list[Value]) -> str:
    """The values for a terminal, section by section."""
    texts = [v.value if v.value is NOT_SHOWN else json.dumps(v.value, ensure_ascii=False) for v in values]
    width = max((len(v.key) + len(text) + 3 for v, text in zip(values, texts, strict=True)), default=0)
    lines: list[str] = []
    section = ""
    for value, text in zip(values, texts, strict=True):
        if value.section != section:
            section = value.section
            lines.append(f"[{section}]")
        lines.append(f"  {f'{value.key} = {text}':{min(width, 70)}}  # {value.where}")
    return "\n".join(lines)


def summary(queue: PandaQueue) -> str:
    """One line about a queue that is right."""
    where = f" at {host}" if (host := getattr(queue.ce, "host", "")) else ""
    slot = queue.slot
    return (
        f"{queue.name}: {queue.state}, {queue.ce.kind}{where}, {slot.cores} cores, {slot.memory_mib} MiB,"
        f" {slot.walltime_s} s, identity {queue.identity_policy.value}"
    )
