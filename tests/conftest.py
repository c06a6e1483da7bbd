"""For the whole suite: a private Airflow home, and no test that shows a secret."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from support.canary import CANARIES, Canaries, watch_secrets

pytest_plugins = ["support.places"]
ROOT = Path(__file__).resolve().parents[1]

# Before anything imports airflow, which reads these once.
os.environ.update(
    {
        "AIRFLOW_HOME": tempfile.mkdtemp(prefix="airpanda-tests-"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__AIRPANDA__INCLUDE_DIR": str(ROOT / "include"),
    }
)
watch_secrets()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench", action="store_true", help="measure (tests/bench) instead of skipping it")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Benchmarks are measurements, not tests: only `make bench` collects them."""
    return True if "bench" in collection_path.parts and not config.getoption("--bench") else None


@pytest.fixture
def canaries() -> Canaries:
    """Plant secrets with ``canaries.plant("passphrase")``; showing one fails the test by itself."""
    return CANARIES


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose output, log or traceback shows a secret, and do not show it once more."""
    report = yield
    texts = [text for _, text in report.sections] + [str(report.longrepr or "")]
    shown = set().union(*(CANARIES.shown_in(text) for text in texts))
    if shown:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} shows a secret ({', '.join(sorted(shown))}) in its output, log or traceback"
        report.sections = []
    return report
