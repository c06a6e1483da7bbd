"""What the Airflow surface costs where it is paid for again and again: imports and the reading of DAG files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from bench.record import record

ROOT = Path(__file__).resolve().parents[2]
IMPORT_BAR_S, PARSE_BAR_S, RUNS = 0.2, 0.3, 5
# What any DAG file of anybody imports, and what every process that reads one has loaded already.
AIRFLOW = "import airflow.sdk, airflow.sdk.definitions.dag, airflow.triggers.base; from airflow.sdk import *"
_SCRIPT = """
import time
{before}
began = time.process_time()
{timed}
print(time.process_time() - began)
"""


def cpu_s(before: str, timed: str) -> float:
    """CPU seconds of the second part, in fresh processes: the median, after one that fills caches."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "plugins")}
    each = []
    for _ in range(RUNS + 1):
        script = _SCRIPT.format(before=before, timed=timed)
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
        )
        each.append(float(done.stdout.split()[-1]))
    return median(each[1:])


@pytest.mark.parametrize("module", ["airpanda.operators.jobs", "airpanda.decorators.panda_task"])
def test_import_beyond_airflow(module: str) -> None:
    spent = cpu_s(AIRFLOW, f"import {module}")
    record(
        f"airflow, import {module}", spent, "s", against={"bar": IMPORT_BAR_S}, ratio=spent / IMPORT_BAR_S,
        conditions=f"CPU beyond importing Airflow; median of {RUNS} processes",
    )  # fmt: skip


@pytest.mark.parametrize("dag", ["production_campaign", "analysis_zmumu", "examples/hello_grid", "panda_watchdog"])
def test_parse_beyond_airflow(dag: str) -> None:
    timed = f"import runpy; runpy.run_path({str(ROOT / 'dags' / dag) + '.py'!r})"
    spent = cpu_s(AIRFLOW, timed)
    record(
        f"airflow, read {dag}.py", spent, "s", against={"bar": PARSE_BAR_S}, ratio=spent / PARSE_BAR_S,
        conditions=f"CPU beyond importing Airflow, our modules included; median of {RUNS} processes",
    )  # fmt: skip
