"""A gateway learns Airflow's configuration without having Airflow in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from airpanda.core.errors import ConfigurationError
from airpanda.dispatcher import configured

PLUGINS = Path(configured.__file__).resolve().parents[2]


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {
        "PYTHONPATH": str(PLUGINS),
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql+psycopg2://u@localhost/x",
        "AIRFLOW__CORE__FERNET_KEY": f"{Fernet.generate_key().decode()},{Fernet.generate_key().decode()}",
        "AIRFLOW__AIRPANDA__SIGNING_KEY": str(tmp_path / "key.pem"),
        "AIRFLOW__AIRPANDA__FILE_STORE": str(tmp_path / "files"),
        "AIRFLOW__AIRPANDA__INCLUDE_DIR": str(tmp_path),
        "AIRFLOW__AIRPANDA__PILOT_RATE": "7.5",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AIRFLOW_CONFIG", raising=False)
    return tmp_path


def test_the_gateways_own_modules_import_no_airflow() -> None:
    code = "import airpanda.dispatcher.gateway, airpanda.dispatcher.app, sys; sys.exit('airflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(PLUGINS)}, check=True, timeout=60)


def test_the_child_tells_what_airflow_says(home: Path) -> None:
    found = configured.read_by_child()
    assert (found.settings.signing_key, found.settings.pilot_rate) == (home / "key.pem", 7.5)
    assert found.dsn.reveal() == "postgresql://u@localhost/x"
    assert [key.reveal() for key in found.fernet_keys] == os.environ["AIRFLOW__CORE__FERNET_KEY"].split(",")


def test_what_is_wrong_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AIRPANDA__PILOT_RATE", "many")
    with pytest.raises(ConfigurationError, match="pilot_rate"):
        configured.read_by_child()
    monkeypatch.setenv("AIRFLOW__AIRPANDA__PILOT_RATE", "1")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite:////tmp/x.db")
    with pytest.raises(ConfigurationError, match="PostgreSQL"):
        configured.read_by_child()


def test_an_airflow_that_cannot_start_is_one_sentence(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (home / "airflow.cfg").write_text("no section here\n")
    with pytest.raises(ConfigurationError, match="Airflow says why above"):
        configured.read_by_child()
    assert "airflow.cfg" in capfd.readouterr().err
