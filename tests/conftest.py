"""For the whole suite: a private Airflow home, and no test that shows a secret."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.canary import CANARIES, Canaries, watch_secrets

pytest.register_assert_rewrite("support.elements")
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
# How long an example takes says how busy the machine is, and nothing of the code. The same examples in every run: what
# fails tells of the change at hand. New ones are for `make fuzz`.
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="AIRPANDA_FUZZ" not in os.environ,
)
settings.load_profile("any machine")


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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """The last words, below pytest's own: how much of the suite was not run, and why."""
    yield
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return
    reasons: Counter[str] = Counter()
    for report in terminal.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if "NOT TESTED: " in reason:
            reasons[reason.partition("NOT TESTED: ")[2]] += 1
    if not reasons:
        return
    terminal.section("NOT TESTED", red=True, bold=True)
    for reason, number in reasons.most_common():
        terminal.line(f"{number} tests were NOT RUN: {reason}", red=True)
    if os.geteuid() != 0:
        terminal.line("Nothing that switches accounts was tested. As root, `make test` tests all of it.", red=True)
