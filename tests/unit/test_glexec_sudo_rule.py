"""The text of the sudo rule: who and what may never be in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from airpanda.core.errors import ConfigurationError
from airpanda.glexec.sudo_rule import rule_text

LAUNCHER, CLIENT = Path("/usr/local/libexec/a/sbin/airpanda-launcher"), Path("/usr/local/libexec/a/sbin/glexec-sudo")


@pytest.mark.parametrize(
    "caller",
    ["", "ALL", "a b", "a,b", "pilot ALL=(ALL) NOPASSWD: ALL\n#", "#0", "!pilot", "+netgroup", "%", "*", "a=b"],
)
def test_what_is_no_account_is_no_caller(caller: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name of an account"):
        rule_text(LAUNCHER, CLIENT, ["pilot", caller])


def test_nobody_is_no_caller() -> None:
    with pytest.raises(ConfigurationError, match="needs a caller"):
        rule_text(LAUNCHER, CLIENT, [])


def test_a_path_cannot_begin_another_line() -> None:
    with pytest.raises(ConfigurationError, match="path is one line"):
        rule_text(Path("/x\npilot ALL=(ALL) NOPASSWD: ALL"), CLIENT, ["pilot"])


def test_the_rule_gives_one_command_without_arguments_of_sudos() -> None:
    lines = [line for line in rule_text(LAUNCHER, CLIENT, ["pilot", "%pilots"]).splitlines() if line[0] != "#"]
    assert lines == [
        f'Defaults!{LAUNCHER} env_keep += "GLEXEC_*"',
        f"pilot, %pilots ALL=(root) NOPASSWD: {LAUNCHER}",
    ]


def test_what_sudo_would_read_otherwise_is_escaped() -> None:
    text = rule_text(Path("/a b/c,d*/launcher"), CLIENT, ["pilot"])
    assert "NOPASSWD: /a\\ b/c\\,d\\*/launcher\n" in text
