"""Hidden places, and the ways around them: a working directory inside, a name that somebody can change."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import PILOT_UID, Site, make_site

from airpanda_demo.worker_node import INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration]

HIDDEN = Path("/var/lib/dpkg")
OURS = Path("/run/work/hidden")


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    yield from make_site(hide=f"{HIDDEN}\n{OURS}\n/var/tmp/nothing")


def within(site: Site, place: Path, script: str) -> str:
    command = f"cd \"{place}\" && exec {site.glexec} /bin/sh -c '{script}'"
    ran = site.run("/bin/sh", "-c", command, env={"GLEXEC_CLIENT_CERT": str(site.put_proxy())})
    assert ran.code == 0, ran
    return ran.out


@pytest.mark.parametrize("place", [Path("/"), HIDDEN, HIDDEN / "info"])
def test_the_sites_directory_stays_hidden_whoever_stands_in_it(site: Site, place: Path) -> None:
    assert list((HIDDEN / "info").iterdir())
    assert (
        within(site, place, f"pwd; ls {HIDDEN} 2>/dev/null | wc -l; ls {HIDDEN}/info 2>/dev/null | wc -l")
        == "/\n0\n0\n"
    )


def test_the_callers_own_directory_is_kept_without_setuid_and_devices(site: Site) -> None:
    hidden = site.node.path(OURS)
    hidden.mkdir(mode=0o755)
    mine = hidden / "mine"
    mine.mkdir(mode=0o755)
    os.chown(mine, PILOT_UID, PILOT_UID)
    (hidden / "other").mkdir()
    try:
        look = f'pwd; test -e {OURS}/other; echo $?; grep " {OURS}/mine " /proc/self/mountinfo'
        where, other, mount = within(site, OURS / "mine", look).splitlines()
    finally:
        subprocess.run(["rm", "-r", str(hidden)], check=True, timeout=30)
    assert (where, other) == (f"{OURS}/mine", "1")
    assert {"nosuid", "nodev"} <= set(mount.split()[5].split(","))


def test_a_hidden_place_below_somebody_elses_directory_is_a_mistake(site: Site) -> None:
    place = site.directory(mode=0o755)
    config = site.node.path(INSTALLED.config)
    text = config.read_text()
    config.write_text(text.replace(f"hide = {HIDDEN}", f"hide = {HIDDEN}\n    {place}/secret"))
    try:
        ran = site.glexec_run("/usr/bin/id")
    finally:
        config.write_text(text)
    assert (ran.code, ran.out) == (202, "")
    assert f"{place} belongs to uid {PILOT_UID}" in ran.err
    assert site.glexec_run("/usr/bin/id").code == 0
