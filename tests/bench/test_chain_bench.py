"""The whole chain: how long the warm demonstration takes, and what Airflow adds before and after the payloads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from bench.record import record

ROOT = Path(__file__).resolve().parents[2]
WARM_BAR_S, END_BAR_S = 90.0, 3.0


@pytest.fixture(scope="module", name="report")
def _report() -> dict[str, Any]:
    """The second of two demonstrations in one directory: the first one installs what is missing."""
    directory = Path(os.environ.get("AIRPANDA_DEMO_DIR", "/var/tmp/airpanda-demo"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "include" / "demo")}
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-m", "airpanda_demo", "once"], env=environment, check=True, timeout=900, cwd=ROOT
        )
    report: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return report


def test_warm_demonstration(report: dict[str, Any]) -> None:
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["phases_s"].items())
    elapsed = report["elapsed_s"]
    record(
        "demo, warm", elapsed, "s", against={"bar": WARM_BAR_S}, ratio=elapsed / WARM_BAR_S,
        conditions=f"start to table; phases in s: {phases}",
    )  # fmt: skip


def test_airflow_task_start_to_first_payload(report: dict[str, Any]) -> None:
    each = {f"{run['dag_id']} ({run['owner']})": run["first_payload_s"] for run in report["timeline"]}
    record(
        "chain, Airflow task start to the first payload running", median(each.values()), "s", against=each,
        conditions="median over the demonstration's runs; includes the start of fresh pilots and their probe",
    )  # fmt: skip


def test_last_job_final_to_task_success(report: dict[str, Any]) -> None:
    lags = {
        f"{run['dag_id']} ({run['owner']})": round(run["task_end_s"] - run["last_job_final_s"], 3)
        for run in report["timeline"]
    }
    middle = median(lags.values())
    record(
        "chain, last job final to Airflow task success", middle, "s", against={"bar": END_BAR_S, **lags},
        ratio=middle / END_BAR_S, conditions="median; the first wait of a fresh triggerer pays for Airflow's imports",
    )  # fmt: skip
