"""``pilot.json``: read once, strictly, and its token in no message."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from airpanda.computing.configuration import pilot_json
from airpanda.computing.queues import PandaQueue
from airpanda.core.errors import ConfigurationError
from airpanda.core.identity import IdentityPolicy
from airpanda.core.secret import Secret
from airpanda.pilot.config import PilotConfig, take_config

TOKEN = "canary-token-5731"
GOOD: dict[str, Any] = {
    "pilot_id": 12,
    "tag": "t",
    "token": TOKEN,
    "queue": "DEMO",
    "dispatcher_url": "https://localhost:1",
    "ca_dir": "/ca",
    "proxy": "/proxy",
    "identity_policy": "REQUIRED",
    "slot": {"cores": 1, "memory_mib": 1, "disk_mib": 1, "walltime_s": 1},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pilot_id": "12"}, "pilot_id has the wrong type"),
        ({"pilot_id": True}, "pilot_id has the wrong type"),
        ({"token": 1}, "token has the wrong type"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"slot": {"cores": 1}}, "slot: disk_mib is missing"),
        ({"slot": {**GOOD["slot"], "cores": 0}}, "more than 0"),
        ({"slot": {**GOOD["slot"], "gpus": 1}}, "unknown key 'gpus'"),
        ({"identity_policy": "maybe"}, "REQUIRED, OPTIONAL or NEVER"),
        ({"dispatcher_url": "http://panda.example.org"}, "https"),
        ({"dispatcher_url": "file:///etc/passwd"}, "https"),
        ({"environment": {"A": 1}}, "values must be text"),
        ({"hide": ["/"]}, "absolute paths"),
        ({"show": ["relative"]}, "absolute paths"),
        ({"features": ["a b"]}, "features must be letters"),
        ({"features": [1]}, "features must be letters"),
        ({"max_payloads": "2"}, "max_payloads has the wrong type"),
    ],
)
def test_wrong_values_are_named_and_the_token_is_not(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        PilotConfig.from_json(json.dumps({**GOOD, **change}), Path("/pilot"))
    assert TOKEN not in repr(caught.value)


@pytest.mark.parametrize("key", sorted(GOOD))
def test_every_required_key_is_missed(key: str) -> None:
    values = {k: v for k, v in GOOD.items() if k != key}
    with pytest.raises(ConfigurationError, match=f"{key} is missing"):
        PilotConfig.from_json(json.dumps(values), Path("/pilot"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"pilot\.json is not"):
        PilotConfig.from_json(text, Path("/pilot"))


def test_it_is_read_hidden_and_comes_back_without_its_token() -> None:
    config = PilotConfig.from_json(json.dumps(GOOD), Path("/pilots/t-12"))
    assert config.identity_policy is IdentityPolicy.REQUIRED
    assert config.scratch == Path("/pilots/.t-12.wn")
    assert TOKEN not in repr(config)
    plain = json.dumps(config.without_token())
    assert TOKEN not in plain
    again = PilotConfig.from_json(plain, config.workdir)
    assert (again.slot, again.scratch, again.token.reveal()) == (config.slot, config.scratch, "")


def test_a_queue_file_reaches_the_pilot_whole() -> None:
    """Every key of [pilot] that concerns the pilot arrives, under its name and with its value."""
    pilot: dict[str, Any] = {
        "code": "/code",
        "dispatcher_url": "https://panda.example.org:1",
        "ca_dir": "/ca",
        "proxy": "/proxy",
        "glexec": "/sbin/glexec",
        "myproxy": "localhost:7512",
        "idle_limit_s": 11,
        "hide": ["/a"],
        "show": ["/b"],
        "max_payloads": 12,
        "features": ["cvmfs", "atlas:24.0"],
        "checks": "/checks",
        "benchmark_s": 13,
        "bench_sleep_s": 14,
        "looping_s": 15,
        "scan_every_s": 16,
        "proxy_margin_s": 17,
        "kill_grace_s": 18,
    }
    ce = {"kind": "local", "directory": "/pilots"}
    queue = PandaQueue.from_wire({"queue": {"name": "DEMO"}, "ce": ce, "pilot": {**pilot, "token_only": True}})
    config = PilotConfig.from_json(pilot_json(queue, "t", 12, Secret(TOKEN)), Path("/pilots/t-12"))
    arrived = json.loads(json.dumps(config.without_token()))
    assert {key: arrived[key] for key in pilot if key != "code"} == {k: v for k, v in pilot.items() if k != "code"}


def write(path: Path, mode: int = 0o600) -> Path:
    path.write_text(json.dumps(GOOD))
    path.chmod(mode)
    return path


def test_one_file_starts_one_pilot(tmp_path: Path) -> None:
    path = write(tmp_path / "pilot.json")
    assert take_config(path).pilot_id == 12
    with pytest.raises(ConfigurationError, match="a pilot starts once"):
        take_config(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="0600"):
        take_config(write(tmp_path / "pilot.json", mode))


def test_links_pipes_and_long_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write(tmp_path / "pilot.json"))
    os.mkfifo(tmp_path / "pipe", 0o600)
    write(tmp_path / "long").write_text(" " * (1024 * 1024 + 1))
    for name, words in (("link", "opened"), ("pipe", "regular"), ("long", "longer"), (".", "regular")):
        with pytest.raises(ConfigurationError, match=words):
            take_config(tmp_path / name)
