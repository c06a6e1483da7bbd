"""The launcher's configuration: what must be refused, then what an installed file says."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from airpanda.core.errors import ConfigurationError
from airpanda.glexec.config import _options, parse_config
from airpanda.glexec.install import render_config
from airpanda.glexec.launcher.admission import Admission

GOOD = "[glexec]\ncallers = pilot, %pilots\nca_dir = /ca\nmapfile = /m\nlog_file = /l\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[glexec]\n",
        "callers = pilot\n",
        GOOD + "[extra]\n",
        GOOD + "hidee = /x\n",
        GOOD + "callers = twice\n",
        GOOD + "minimum_uid = 0\n",
        GOOD + "minimum_uid = ten\n",
        GOOD + "allow_root = maybe\n",
        GOOD + "hide = relative\n",
        GOOD + "hide = /a/../b\n",
        GOOD + "no line\n",
        GOOD + "= nothing\n",
        GOOD + "[glexec]\n",
        GOOD + "[unfinished\n",
        GOOD + "CALLERS = twice in other letters\n",
        "[glexec]\n  indented = first\n",
        "x = 1\n" + GOOD,
        GOOD.replace("/ca", "ca"),
        "[DEFAULT]\nallow_root = yes\n" + GOOD,
    ],
)
def test_a_wrong_configuration_is_refused_whole(text: str) -> None:
    with pytest.raises(ConfigurationError, match="file"):
        parse_config(text, where="file")


def test_defaults_are_the_strict_ones() -> None:
    config = parse_config(GOOD, where="file")
    assert config.callers == ("pilot", "%pilots")
    assert (config.allow_root, config.allow_limited) == (False, False)
    assert (config.minimum_uid, config.minimum_gid) == (1000, 1000)
    assert (config.private_tmp, config.hide_caller_home) == (True, True)


def test_paths_may_hold_spaces() -> None:
    config = parse_config(GOOD + "hide = /a b\n    /c\n", where="file")
    assert config.hide == (Path("/a b"), Path("/c"))


def test_the_installed_file_reads_back() -> None:
    options = {"callers": "pilot", "ca_dir": "/c d", "mapfile": "/m", "log_file": "/l", "hide": "/x y\n/z"}
    config = parse_config(render_config(options), where="file")
    assert (config.ca_dir, config.hide) == (Path("/c d"), (Path("/x y"), Path("/z")))
    with pytest.raises(ConfigurationError, match="no option"):
        render_config({**options, "hidee": "/x"})


@pytest.mark.parametrize(
    ("callers", "more", "share"),
    [("pilot", "", 7), ("pilot other", "", 4), ("%pilots", "", 4), ("pilot", "allow_root = yes\n", 4)],
)
def test_one_of_several_callers_cannot_have_all_runs(callers: str, more: str, share: int) -> None:
    text = GOOD.replace("pilot, %pilots", callers) + "max_runs = 7\n" + more
    config = parse_config(text, where="file")
    admission = Admission(Path("/missing"), config)
    peers = [(1001, 1001, ())] * share
    for pid, peer in enumerate(peers):
        assert admission.refusal_of(peer) is None
        admission.begin(pid, peer)
    assert admission.refusal_of(peers[0]) is not None
    assert (admission.refusal_of((1002, 1002, ())) is None) == (share < 7)
    admission.end(0)
    assert admission.refusal_of(peers[0]) is None


def test_comments_empty_lines_and_values_of_several_lines() -> None:
    text = (
        "# first\n\n[glexec]\n; and\nCallers = pilot\n\tother=one\n# between\n\n   %pilots\nca_dir=/c a=b\n"
        "log_file = /l\nmapfile = /m\nhide =\n    /a b\n    /c\nban_file =\n"
    )
    config = parse_config(text, where="file")
    assert config.callers == ("pilot", "other=one", "%pilots")
    assert str(config.ca_dir) == "/c a=b"
    assert list(map(str, config.hide)) == ["/a b", "/c"]
    assert config.ban_file is None


@pytest.mark.parametrize("more", ["", "hide = /a\n  /b\n\n  # x\n  /c\nshow =\n /d\n", "; c\ntmp_mib= 5\n"])
def test_the_language_is_that_of_configparser(more: str) -> None:
    text = GOOD + more
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), default_section="\0")
    parser.read_string(text)
    assert {name: value.split() for name, value in _options(text, "file").items()} == {
        name: value.split() for name, value in parser["glexec"].items()
    }
