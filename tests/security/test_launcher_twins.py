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


# What a site's monitoring did with gLExec, step by step: CMS' probe of worker nodes.
PROBE = """
glexec=${OSG_GLEXEC_LOCATION:-${GLEXEC_LOCATION:-${GLITE_LOCATION:-/usr}}/sbin/glexec}
$glexec -v >/dev/null || exit 11
export GLEXEC_SOURCE_PROXY=$GLEXEC_CLIENT_CERT GLEXEC_TARGET_PROXY=/tmp/x509up_u$(id -u).glexec.4711
test "$($glexec /usr/bin/id -u)" != "$(id -u)" || exit 12
inner=$($(dirname $glexec)/mkgltempdir) || exit 13
outer=$(dirname $inner)
printf '#!/bin/sh\necho Hello world; stat -c "%%u %%a %%n" $X509_USER_PROXY\n' >$outer/payload.sh
printf '#!/bin/sh\ncd %s && ./payload.sh >out 2>err; chmod a+rx .; chmod a+r ./*\n' $inner >$outer/wrapper.sh
for file in payload.sh wrapper.sh; do
    chmod 755 $outer/$file && $glexec /bin/cp $outer/$file $inner && rm $outer/$file || exit 14
done
$glexec $inner/wrapper.sh || exit 15
cat $inner/out $inner/err
$glexec /bin/rm $inner/* || exit 16
$(dirname $glexec)/mkgltempdir -r $inner || exit 17
test ! -e $outer
"""


def test_a_sites_probe_of_glexec_is_content(site: Site, env: dict[str, str]) -> None:
    where = site.directory(mode=0o755, where=Path("/home/pilot"))
    ran = site.run("/bin/sh", "-c", f"cd {where} && {PROBE}", env=env)
    target = f"/tmp/x509up_u{PILOT_UID}.glexec.4711"
    assert (ran.code, ran.out) == (0, f"Hello world\n{ALICE_UID} 600 {target}\n"), ran
    assert not site.node.path(Path(target)).exists()


# glideinWMS' two, before it took any job: a command, and a script in its own directory.
GLIDEIN = """
umask 022; printf '#!/bin/sh\nid -u && echo "Hello World"\n' >test2.sh && chmod a+x test2.sh
$OSG_GLEXEC_LOCATION $(readlink -f /bin/sh) -c 'id -u && echo "Hello World"' && $OSG_GLEXEC_LOCATION $PWD/test2.sh
"""


@pytest.mark.parametrize("below", ["/home/pilot", "/tmp"])
def test_a_glideins_probes_of_glexec_are_content(site: Site, env: dict[str, str], below: str) -> None:
    where = site.directory(mode=0o755, where=Path(below))
    ran = site.run("/bin/sh", "-c", f"cd {where} && {GLIDEIN}", env=env)
    assert (ran.code, ran.out) == (0, f"{ALICE_UID}\nHello World\n" * 2), ran


def test_a_temporary_directory_that_everybody_shares_is_no_place_for_a_proxy(site: Site, env: dict[str, str]) -> None:
    config = site.node.path(INSTALLED.config)
    before = config.read_text()
    config.write_text(f"{before}private_tmp = no\n")
    try:
        ran = site.run(site.glexec, "/bin/true", env={**env, "GLEXEC_TARGET_PROXY": "/tmp/x509up_u1"})
    finally:
        config.write_text(before)
    assert ran.code == 201, ran
    assert "not be world-writable" in ran.err
    for place in ("/tmp/none/x", "/tmp/../x", "/tmp/."):
        assert site.run(site.glexec, "/bin/true", env={**env, "GLEXEC_TARGET_PROXY": place}).code == 201
