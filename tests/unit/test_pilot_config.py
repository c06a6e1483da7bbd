"""``pilot.json``: read once, strictly, and its token in no message."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from airpanda.core.errors import ConfigurationError
from airpanda.core.identity import IdentityPolicy
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
