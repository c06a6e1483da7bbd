"""The same launcher with Debian's real LCMAPS as its mapper."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, BOB_UID, MAPPER_UID, POOL, Site, make_site
from support.need import absent, need_program

from airpanda_demo.worker_node import GRID_SECURITY, INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration]

DATABASE = GRID_SECURITY / "lcmaps.db"
BAN_FILE = GRID_SECURITY / "our-bans"
MODULES = Path("/usr/lib/lcmaps")
NEEDED = ("verify_proxy", "localaccount", "poolaccount", "ban_dn", "dummy_good")

PLUG_IN = INSTALLED.prefix / "plug-in.mod"
CONSTANT = {
    "PATH",
    *("LCMAPS_DB_FILE", "LCMAPS_POLICY_NAME", "LCMAPS_DEBUG_LEVEL"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "X509_CERT_DIR", "X509_VOMS_DIR"),
}

TEXT = f"""path = {MODULES}
verify_proxy = "lcmaps_verify_proxy.mod" "-certdir {GRID_SECURITY}/certificates" "--disallow-limited-proxy"
localaccount = "lcmaps_localaccount.mod" "-gridmapfile {GRID_SECURITY}/grid-mapfile"
poolaccount = "lcmaps_poolaccount.mod" "-gridmapfile {GRID_SECURITY}/grid-mapfile" \
"-gridmapdir {GRID_SECURITY}/lcmaps-gridmapdir" "-strict_poolprefix_match yes"
good = "lcmaps_dummy_good.mod"

glexec_get_account:
verify_proxy -> localaccount
localaccount -> good | poolaccount
"""


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    missing = [name for name in NEEDED if not (MODULES / f"lcmaps_{name}.mod").exists()]
    if missing:
        absent(f"NOT TESTED: LCMAPS plug-ins {', '.join(missing)} are missing (tests/install-system-packages)")
    for site in make_site(
        mapping="lcmaps",
        lcmaps_db=str(DATABASE),
        lcmaps_user="mapper",
        lease_dir="/run/airpanda/leases",
        ban_file=str(BAN_FILE),
    ):
        site.node.path(BAN_FILE).touch(0o644)
        database = site.node.path(DATABASE)
        database.write_text(TEXT)
        database.chmod(0o644)
        pool = site.node.path(GRID_SECURITY / "lcmaps-gridmapdir")
        pool.mkdir()
        for name in POOL:
            (pool / name).touch()
            os.chown(pool / name, MAPPER_UID, MAPPER_UID)
        os.chown(pool, MAPPER_UID, MAPPER_UID)
        yield site


def test_lcmaps_maps_people_to_their_accounts(site: Site) -> None:
    for who, uid in (("alice", ALICE_UID), ("bob", BOB_UID)):
        ran = site.glexec_run("/usr/bin/id", "-u", proxy=site.put_proxy(who))
        assert (ran.code, ran.out) == (0, f"{uid}\n"), ran
        assert site.last_record()["lease"] is None


def test_a_pool_account_has_a_lease_and_keeps_it(site: Site) -> None:
    site.node.set_mapfile({**site.mapfile, site.pki.dn("carol"): ".dt"})
    try:
        first, second = (site.glexec_run("/usr/bin/id", "-un", proxy=site.put_proxy("carol")) for _ in range(2))
    finally:
        site.node.set_mapfile(site.mapfile)
    assert first.out == second.out
    assert first.out.strip() in POOL
    assert site.last_record()["lease"] == "%2fo%3dtest%20grid%2fcn%3dcarol%20example"


def test_unmapped_is_203_and_our_own_checks_come_first(site: Site) -> None:
    assert site.glexec_run("/usr/bin/id", proxy=site.put_proxy("carol")).code == 203
    assert site.glexec_run("/usr/bin/id", proxy=site.put_proxy(limited=True)).code == 203
    assert site.glexec_run("/usr/bin/id", proxy=site.put(b"garbage")).code == 201


def test_our_ban_file_holds_where_the_policy_has_none(site: Site) -> None:
    bans = site.node.path(BAN_FILE)
    bans.write_text(f'"{site.pki.dn("alice")}"\n')
    try:
        ran = site.glexec_run("/usr/bin/id")
        assert (ran.code, ran.out) == (203, "")
        assert "banned" in ran.err
    finally:
        bans.write_text("")
    assert site.glexec_run("/usr/bin/id").code == 0


@pytest.mark.parametrize("account", ["root", "pilot", "low", "system"])
def test_what_lcmaps_says_is_checked(site: Site, account: str) -> None:
    site.node.set_mapfile({site.pki.dn("alice"): account})
    try:
        assert site.glexec_run("/usr/bin/id").code == 203
    finally:
        site.node.set_mapfile(site.mapfile)


def test_the_pool_directory_is_roots_or_the_mapping_users(site: Site) -> None:
    pool = site.node.path(GRID_SECURITY / "lcmaps-gridmapdir")
    try:
        for uid, mode in ((ALICE_UID, 0o755), (MAPPER_UID, 0o777)):
            os.chown(pool, uid, -1)
            pool.chmod(mode)
            assert site.glexec_run("/usr/bin/id").code == 202
    finally:
        os.chown(pool, MAPPER_UID, -1)
        pool.chmod(0o755)
    assert site.glexec_run("/usr/bin/id").code == 0


def put_plug_in(site: Site, text: str, scratch: Path) -> None:
    """Compile a plug-in, and put it on the node as root's."""
    source, module = scratch / "plug-in.c", scratch / "plug-in.mod"
    source.write_text(text)
    subprocess.run([need_program("cc", "gcc"), "-shared", "-fPIC", "-o", module, source], check=True, timeout=60)
    shutil.copyfile(module, site.node.path(PLUG_IN))


@pytest.mark.parametrize(
    "plug_in",
    [
        "void plugin_initialize(void) {}",
        "#include <unistd.h>\n__attribute__((constructor)) static void hang(void) { sleep(600); }",
        "#include <stdlib.h>\n__attribute__((constructor)) static void die(void) { abort(); }",
    ],
    ids=["broken", "slow", "crashes"],
)
def test_a_backend_that_is_down_is_202_in_bounded_time(site: Site, plug_in: str, tmp_path: Path) -> None:
    """Row 33, with plug-ins that never answer: nothing runs, nothing hangs, and then all is well again."""
    put_plug_in(site, plug_in, tmp_path)
    database = site.node.path(DATABASE)
    database.write_text(TEXT.replace('good = "lcmaps_dummy_good.mod"', f'good = "{PLUG_IN}"'))
    try:
        began = time.monotonic()
        assert site.glexec_run("/usr/bin/id").code == 202
        assert time.monotonic() - began < 90  # the launcher's limit for a mapping is 20 s
    finally:
        database.write_text(TEXT)
    assert site.glexec_run("/usr/bin/id").code == 0


LOOK = """
#include <stdio.h>
#include <string.h>
extern char **environ;
__attribute__((constructor)) static void look(void) {
    char line[4096];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) fprintf(stderr, "plug-in %s", line);
    for (char **each = environ; *each; each++)
        fprintf(stderr, "plug-in env %.*s\\n", (int)strcspn(*each, "="), *each);
    fprintf(stderr, "plug-in reads the log: %d\\n", fopen("LOG", "r") != NULL);
}
"""


def test_it_runs_without_rights_in_an_environment_of_the_sites_and_is_gone_afterwards(
    site: Site, tmp_path: Path
) -> None:
    """By the word of a plug-in of its own, whatever the caller has set."""
    put_plug_in(site, LOOK.replace("LOG", str(INSTALLED.prefix / "log" / "glexec.jsonl")), tmp_path)
    database, log = site.node.path(DATABASE), site.node.directory / "node.log"
    database.write_text(TEXT.replace('good = "lcmaps_dummy_good.mod"', f'good = "{PLUG_IN}"'))
    before = len(log.read_bytes())
    try:
        env = {"LCMAPS_LOG_FILE": "/tmp/x", "LD_PRELOAD": "/tmp/x", "OPENSSL_CONF": "/tmp/x", "PATH": "/home/pilot"}
        assert site.glexec_run("/usr/bin/id", env=env).code == 202
    finally:
        database.write_text(TEXT)
    said = [line.removeprefix("plug-in ") for line in log.read_text()[before:].splitlines() if "plug-in " in line]
    status = {name: value.split() for name, _, value in (line.partition(":") for line in said) if value}
    assert status["Uid"] == status["Gid"] == [str(MAPPER_UID)] * 4
    assert status["Groups"] == [str(MAPPER_UID)]
    assert {status[name][0] for name in ("CapEff", "CapPrm", "CapInh")} == {"0" * 16}
    assert status["reads the log"] == ["0"]
    assert {line.split()[1] for line in said if line.startswith("env ")} == CONSTANT
    assert site.processes(MAPPER_UID) == []


@pytest.mark.parametrize("fault", ["missing", "malformed", "writable"])
def test_its_configuration_must_be_roots_and_whole(site: Site, fault: str) -> None:
    database = site.node.path(DATABASE)
    try:
        if fault == "missing":
            database.unlink()
        elif fault == "malformed":
            database.write_text("glexec_get_account:\nnonsense ->\n")
        else:
            database.chmod(0o666)
        assert site.glexec_run("/usr/bin/id").code == 202
    finally:
        database.write_text(TEXT)
        database.chmod(0o644)


def test_the_callers_environment_does_not_steer_it(site: Site) -> None:
    mine = site.put(TEXT.replace("grid-mapfile", "other").encode(), mode=0o644)
    env = {"LCMAPS_DB_FILE": str(mine), "LCMAPS_MODULES_DIR": "/tmp", "GRIDMAP": str(mine), "X509_CERT_DIR": "/tmp"}
    assert site.glexec_run("/usr/bin/id", "-u", env=env).out == f"{ALICE_UID}\n"


def test_check_knows_lcmaps(site: Site) -> None:
    code = f"import sys; sys.path.insert(0, '{INSTALLED.prefix}/lib'); from airpanda.glexec.cli import main; "
    code += f"sys.exit(main(['check', '--prefix', '{INSTALLED.prefix}', '--caller', 'pilot', '{site.put_proxy()}']))"
    command = [*site.node.root_argv(), sys.executable, "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"maps it to alice (uid {ALICE_UID}" in done.stdout, done
