"""The one file of measurements: ``tests/bench/results.json``, a value for each name, with how it was measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")


def record(
    name: str,
    value: float,
    unit: str,
    *,
    against: Mapping[str, Any] | None = None,
    ratio: float | None = None,
    conditions: str = "",
) -> None:
    """Put one measurement into the file, in place of an older one of that name.

    Args:
        against: what it is compared with, by name; such as a bar or another program's figure.
        ratio: value over that.
        conditions: what a reader must know, in words; machine and load are added.
    """
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    load = os.getloadavg()[0]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, load {load:.1f}, nice {os.nice(0)}"
    machine = f"{machine}, {datetime.now(UTC):%Y-%m-%d}"
    results[name] = {
        "value": round(value, 4),
        "unit": unit,
        "against": dict(against or {}),
        "ratio": None if ratio is None else round(ratio, 3),
        "conditions": f"{conditions}; {machine}" if conditions else machine,
    }
    temporary = RESULTS.with_suffix(".new")
    temporary.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(RESULTS)
