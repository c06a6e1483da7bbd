"""The programs beside glexec that a pilot framework written for gLExec calls, on a node, as the pilot."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, PILOT_UID, Site, make_site

from airpanda.glexec.wrapped import decode_environment
from airpanda_demo.worker_node import INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration]

SBIN = INSTALLED.prefix / "sbin"


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    for site in make_site():
        site.node.path(Path("/home/pilot")).chmod(0o711)
        yield site


@pytest.fixture(scope="module")
def env(site: Site) -> dict[str, str]:
    return {"GLEXEC_CLIENT_CERT": str(site.put_proxy()), "OSG_GLEXEC_LOCATION": site.glexec}


@pytest.mark.parametrize("value", ["%%%", "QUJD", base64.b64encode(zlib.compress(b"QQ==")[:-2]).decode()])
def test_an_environment_that_cannot_be_unwrapped_runs_nothing(site: Site, value: str) -> None:
    ran = site.run(str(SBIN / "glexec_unwrapenv.pl"), "--", "/usr/bin/id", env={"GLEXEC_ENV": value})
    assert (ran.code, ran.out) == (201, ""), ran


def test_an_environment_goes_through_the_switch(site: Site, env: dict[str, str]) -> None:
    script = 'export GLEXEC_ENV=$("$0/glexec_wrapenv.pl" --exclude=NOT,"$1"); shift; exec "$@"'
    command = [site.glexec, str(SBIN / "glexec_unwrapenv.pl"), "--", "/usr/bin/env", "-0"]
    mine = {"WORDS": "a 'b' $c\nd", "NOT": "x", "PYTHONPATH": "/home/pilot", "X509_USER_PROXY": "/home/pilot/own"}
    ran = site.run("/bin/sh", "-c", script, str(SBIN), "OTHER", *command, env={**env, **mine, "OTHER": "y"})
    assert ran.code == 0, ran
    got = dict(pair.split("=", 1) for pair in ran.out.split("\0") if pair)
    assert got["WORDS"] == mine["WORDS"]
    assert {"NOT", "OTHER", "PYTHONPATH", "GLEXEC_ENV", "GLEXEC_CLIENT_CERT"}.isdisjoint(got)
    assert got["USER"] == "alice"
    assert got["X509_USER_PROXY"] != mine["X509_USER_PROXY"]


def test_wrapenv_prints_gLExecs_encoding(site: Site) -> None:
    ran = site.run(str(SBIN / "glexec_wrapenv"), env={"WORDS": "x y"})
    assert decode_environment(ran.out.strip())["WORDS"] == "x y"


@pytest.mark.parametrize("options", [["-t", "0755"], ["-m", "0777"], ["-m", "0700"]])
def test_directories_that_would_be_open_or_closed_are_refused(
    site: Site, env: dict[str, str], options: list[str]
) -> None:
    ran = site.run(str(SBIN / "mkgltempdir"), *options, "/home/pilot", env=env)
    assert ran.code != 0
    assert ran.out == ""


def test_mkgltempdir_without_a_proxy_or_a_mapping(site: Site, env: dict[str, str]) -> None:
    assert site.run(str(SBIN / "mkgltempdir"), "/home/pilot", env={"OSG_GLEXEC_LOCATION": site.glexec}).code == 201
    unmapped = {**env, "GLEXEC_CLIENT_CERT": str(site.put_proxy("carol"))}
    assert site.run(str(SBIN / "mkgltempdir"), "/home/pilot", env=unmapped).code == 203
    assert not [path for path in site.node.path(Path("/home/pilot")).iterdir() if path.name.startswith("payload-")]


def test_what_mkgltempdir_has_not_made_is_not_removed(site: Site, env: dict[str, str]) -> None:
    """What lies beside a sandbox goes with it: here that would be the pilot's own files."""
    place = site.directory(ALICE_UID, where=Path("/home/pilot"))
    before = {path.name for path in site.node.path(Path("/home/pilot")).iterdir()}
    for options in (["-r"], ["-r", "-f"]):
        ran = site.run(str(SBIN / "mkgltempdir"), *options, str(place), env=env)
        assert (ran.code, ran.out) == (201, ""), ran
    assert {path.name for path in site.node.path(Path("/home/pilot")).iterdir()} == before


def test_a_directory_is_made_used_and_removed(site: Site, env: dict[str, str]) -> None:
    ran = site.run(str(SBIN / "mkgltempdir"), "/home/pilot", env=env)
    made = Path(ran.out.strip())
    outside = site.node.path(made)
    assert (outside.stat().st_uid, outside.stat().st_mode & 0o777) == (ALICE_UID, 0o700)
    assert (outside.parent.stat().st_uid, outside.parent.stat().st_mode & 0o777) == (PILOT_UID, 0o755)
    script = f"cd {made.parent} && exec {site.glexec} /bin/sh -c 'echo result > {made}/file'"
    assert site.run("/bin/sh", "-c", script, env=env).code == 0
    assert (outside / "file").read_text() == "result\n"
    assert site.run(str(SBIN / "mkgltempdir"), "-r", str(made), env=env).code == 0
    assert not outside.parent.exists()
    assert site.run(str(SBIN / "mkgltempdir"), "-r", str(made), env=env).code == 201
    assert site.run(str(SBIN / "mkgltempdir"), "-r", "-f", str(made), env=env).code == 0
