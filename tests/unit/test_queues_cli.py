"""``python -m airpanda queues check|show``: every mistake in every file, and where each value comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from airpanda.__main__ import main

GOOD = """\
# a comment
[queue]
name = "ALPHA"
[slot]
cores = 2
[ce]
kind = "local"
directory = "/var/lib/pilots"
[pilot]
code = "/opt/airpanda/plugins"
dispatcher_url = "https://panda.example.org:25443/panda"
ca_dir = "/etc/grid-security/certificates"
proxy = "/etc/grid-security/pilot.proxy"
[environment]
PATH = "/usr/bin:/bin"
SITE_API_TOKEN = "not-for-everybody-to-see"
"""


@pytest.fixture
def include(tmp_path: Path) -> Path:
    (tmp_path / "queues").mkdir()
    put(tmp_path, "ALPHA", GOOD)
    return tmp_path


def put(include: Path, name: str, text: str) -> None:
    (include / "queues" / f"{name}.toml").write_text(text.replace('"ALPHA"', f'"{name}"'))


def run(include: Path, *argv: str) -> int:
    return main(["queues", *argv, "--include", str(include)])


def test_right_files_are_summed_up(include: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(include, "check") == 0
    out, err = capsys.readouterr()
    assert "ALPHA: online, local, 2 cores" in out
    assert "1 queue files are right, 0 things are wrong" in out
    assert err == ""


def test_all_mistakes_of_all_files_are_told_with_file_line_and_key(
    include: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(include, "BETA", GOOD.replace("cores = 2", "corse = 2"))
    put(include, "DELTA", GOOD.replace("cores = 2", "cores = -2"))
    put(include, "GAMMA", GOOD.replace('"local"', '"locla"'))
    put(include, "alpha", GOOD)
    assert run(include, "check") == 1
    out, err = capsys.readouterr()
    queues = include / "queues"
    assert f"{queues}/BETA.toml:5: [slot] has no key 'corse'; did you mean 'cores'?" in err
    assert f"{queues}/DELTA.toml:5: [slot] cores = -2 must be more than 0" in err
    assert f"{queues}/GAMMA.toml:7: [ce] kind = 'locla' is no computing element of this version" in err
    assert f"{queues}/alpha.toml:3: [queue] name = 'alpha' is already defined as 'ALPHA'" in err
    assert "1 queue files are right, 4 things are wrong" in out


@pytest.mark.parametrize("where", ["", "nowhere"])
def test_no_files_are_no_success(tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "queues").mkdir()
    assert run(tmp_path / where, "check") == 1
    assert "no directory" in capsys.readouterr().err if where else "no queue file" in capsys.readouterr().err


def test_show_tells_values_and_their_origin_and_no_secret(include: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(include, "show", "ALPHA") == 0
    out = capsys.readouterr().out
    lines = {" ".join(line.split()) for line in out.splitlines()}
    assert "cores = 2 # ALPHA.toml:5" in lines
    assert "memory_mib = 2000 # default" in lines
    assert 'identity_policy = "REQUIRED" # default' in lines
    assert 'PATH = "/usr/bin:/bin" # ALPHA.toml:15' in lines
    assert "SITE_API_TOKEN = (not shown) # ALPHA.toml:16" in lines
    assert "not-for-everybody" not in out


@pytest.mark.parametrize("name", ["BETA", "../queues/ALPHA"])
def test_show_of_an_unknown_queue_names_the_known(include: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(include, "show", name) == 1
    assert "known: ALPHA" in capsys.readouterr().err


def test_show_of_a_wrong_file_says_what_is_wrong(include: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(include, "BETA", GOOD.replace("cores = 2", "cores = two"))
    assert run(include, "show", "BETA") == 1
    assert "BETA.toml:5" in capsys.readouterr().err


def test_a_dispatcher_that_is_not_there_is_one_sentence(include: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (include / "token").write_text("a-token")
    where = ["--dispatcher", "http://127.0.0.1:1", "--token-file", str(include / "token")]
    assert run(include, "test", "ALPHA", *where) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["queues", "--help"], ["queues", "test", "--help"]):
        with pytest.raises(SystemExit) as left:
            main(argv)
        assert left.value.code == 0
    assert "takes no job" in capsys.readouterr().out
