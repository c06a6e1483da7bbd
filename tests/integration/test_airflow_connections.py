"""docs/operations.md says how Connections are made: every form there is executed, and the hooks accept what comes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.pki import Pki
from support.postgres import Database, empty_database, postgres

from airpanda.core.clock import utcnow
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy
from airpanda_demo.site import write_private

__all__ = ["empty_database", "postgres"]
pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
CHAPTER = (ROOT / "docs" / "operations.md").read_text().partition("## Connections\n")[2].partition("\n## ")[0]
PILOTS = "/DC=org/DC=example/CN=pilot"
IDS = {"panda_default", "myproxy_default", "owner_alice", "slurm_login", "arc_robot"}


def documented(language: str, beginning: str) -> str:
    """The one code block that begins so."""
    (block,) = [text for text in re.findall(rf"```{language}\n(.*?)```", CHAPTER, re.S) if text.startswith(beginning)]
    return block


@dataclass(frozen=True)
class Site:
    """A machine on which the files that the documentation names exist."""

    home: Path
    pki: Pki

    def here(self, text: str) -> str:
        """The same for this machine."""
        return text.replace("/etc/airpanda", str(self.home))

    def commands(self) -> list[list[str]]:
        """Those of the documentation, without the word airflow."""
        text = documented("sh", "airflow connections add").replace("\\\n", " ")
        lines = [shlex.split(self.here(line)) for line in text.splitlines()]
        assert all(words[0] == "airflow" for words in lines)
        return [words[1:] for words in lines]

    def ask(self, environment: Mapping[str, str], commands: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
        """What the hooks find, by Connection; "absent" where there is none."""
        told = self.home / "commands"
        told.write_text("".join(json.dumps(words) + "\n" for words in commands))
        fixed = {
            "PATH": "/usr/bin:/bin",
            "AIRFLOW_HOME": str(self.home / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "PYTHONPATH": str(ROOT / "plugins"),
            "PYTHONWARNINGS": "ignore",
        }
        program = [sys.executable, ROOT / "tests/support/connections_probe.py", told if commands else "-"]
        done = subprocess.run(
            program, env=fixed | environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    @property
    def expected(self) -> dict[str, Any]:
        return {
            "panda_default": ["https://airflow.example.org:443/panda/", self.here("/etc/airpanda/ca.pem"), "TOKEN"],
            "myproxy_default": [
                "myproxy.example.org",
                7512,
                f"{self.home}/certificates",
                "/DC=org/DC=example/CN=pilot",
            ],
            "owner_alice": self.pki.dn("alice"),
            "slurm_login": ["pilot", f"{self.home}/ssh.key"],
            "arc_robot": self.pki.dn("pilot"),
        }

    def only(self, *ids: str) -> dict[str, Any]:
        return {name: answer if name in ids else "absent" for name, answer in self.expected.items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    home = tmp_path_factory.mktemp("site")
    pki = Pki(home / "pki")
    alice, robot = pki.user("alice"), ProxyCredential.from_files(*pki.user("pilot"))
    for source, name in zip(alice, ("alice.cert.pem", "alice.key.pem"), strict=True):
        write_private(home / name, source.read_text())
    create_proxy(robot, lifetime=timedelta(hours=2), now=utcnow()).write(home / "robot.proxy")
    (home / "certificates").symlink_to(pki.ca_dir)
    return Site(home, pki)


def test_the_documented_file_names_what_the_chapter_is_about() -> None:
    assert set(json.loads(documented("json", "{"))) == IDS


def test_the_documented_commands(site: Site, empty_database: Database) -> None:
    """All but the dispatcher's, which has a token and comes from the file."""
    file = site.home / "import.json"
    everything = json.loads(site.here(documented("json", "{")))
    file.write_text(json.dumps({"panda_default": everything["panda_default"]}))
    commands = [*site.commands(), ["connections", "import", str(file)]]
    assert {words[2] for words in commands[:-1]} == IDS - {"panda_default"}
    database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": empty_database.url("postgresql+psycopg2")}
    assert site.ask(database, commands) == site.expected


def test_no_documented_command_has_a_secret(site: Site) -> None:
    words = " ".join(word for command in site.commands() for word in command)
    assert "TOKEN" not in words
    assert "password" not in words


def test_the_documented_environment(site: Site) -> None:
    lines = [shlex.split(site.here(line)) for line in documented("sh", "AIRFLOW_CONN_").splitlines()]
    environment = dict(word.split("=", 1) for (word,) in lines)
    assert site.ask(environment) == site.only("panda_default", "owner_alice")


def test_the_documented_secrets_backend(site: Site) -> None:
    (site.home / "airflow").mkdir(exist_ok=True)
    configuration = site.home / "airflow" / "airflow.cfg"
    configuration.write_text(site.here(documented("ini", "[secrets]")))
    file = site.home / "connections.json"
    file.write_text(site.here(documented("json", "{")))
    try:
        assert site.ask({}) == site.expected
        file.unlink()
        assert site.ask({}) == site.only(), "they have come from elsewhere"
    finally:
        configuration.unlink()
