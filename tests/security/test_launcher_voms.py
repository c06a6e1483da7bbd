"""VOMS proxies: attributes count only when they verify, whoever maps; and what each way of mapping makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, BOB_UID, GROUPS, POOL, Site
from support.launcher_mappings import AUTHORISED, BAN_FILE, DATABASE, MAPPINGS, authorise, ban, mapped_site, write
from support.need import absent
from support.voms import FQAN, VOMSDIR, allow_voms, put_voms_proxy

from airpanda_demo.worker_node import GRID_SECURITY

pytestmark = [pytest.mark.root, pytest.mark.integration]

MODULES = Path("/usr/lib/lcmaps")
GROUP = f"group{GROUPS[0]}"
LCMAPS = f"""path = {MODULES}
verify_proxy = "lcmaps_verify_proxy.mod" "-certdir {GRID_SECURITY}/certificates" "--disallow-limited-proxy"
vomslocalgroup = "lcmaps_voms_localgroup.mod" "-groupmapfile {GRID_SECURITY}/group-mapfile" "-mapmin 1"
vomspoolaccount = "lcmaps_voms_poolaccount.mod" "-gridmapfile {GRID_SECURITY}/grid-mapfile" \
"-gridmapdir {GRID_SECURITY}/lcmaps-gridmapdir" "-do_not_use_secondary_gids"
localaccount = "lcmaps_localaccount.mod" "-gridmapfile {GRID_SECURITY}/grid-mapfile"
good = "lcmaps_dummy_good.mod"

glexec_get_account:
verify_proxy -> vomslocalgroup
vomslocalgroup -> vomspoolaccount | localaccount
localaccount -> good
"""


@pytest.fixture(scope="module", name="site", params=MAPPINGS)
def node_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    for site in mapped_site(request.param, ban_file=str(BAN_FILE)):
        allow_voms(site)
        if site.mapping == "lcmaps":
            let_lcmaps_map_roles(site)
        yield site


def let_lcmaps_map_roles(site: Site) -> None:
    """As a site with pool accounts and a group for a VO."""
    for name in ("voms_localgroup", "voms_poolaccount"):
        if not (MODULES / f"lcmaps_{name}.mod").exists():
            absent("NOT TESTED: LCMAPS' VOMS plug-ins are missing (tests/install-system-packages)")
    write(site, DATABASE, LCMAPS)
    write(site, GRID_SECURITY / "group-mapfile", f'"/testvo/*" {GROUP}\n')


@pytest.fixture(scope="module")
def voms_proxy(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alice as a producer of testvo; its path on the node."""
    return put_voms_proxy(site, tmp_path_factory.mktemp("voms"))


@pytest.fixture(name="remap")
def restored_mapfile(site: Site) -> Iterator[Site]:
    yield site
    site.node.set_mapfile(site.mapfile)
    authorise(site, "alice", "bob")
    ban(site)
    allow_voms(site)


def only(site: Site, mapping: str) -> Site:
    if site.mapping != mapping:
        pytest.skip(f"about mapping = {mapping}")
    return site


@pytest.fixture(name="own")
def _own(remap: Site) -> Site:
    return only(remap, "own")


@pytest.fixture(name="lcmaps")
def _lcmaps(remap: Site) -> Site:
    return only(remap, "lcmaps")


@pytest.fixture(name="dynamic")
def _dynamic(remap: Site) -> Site:
    return only(remap, "dynamic")


# --- whoever maps ---------------------------------------------------------------------------------------------------


def test_attributes_of_a_server_that_is_not_trusted_refuse(remap: Site, voms_proxy: Path) -> None:
    (remap.node.path(VOMSDIR) / "testvo" / "localhost.lsc").write_text("/O=Other/CN=voms\n/O=Other/CN=CA\n")
    ran = remap.glexec_run("/usr/bin/id", proxy=voms_proxy)
    assert (ran.code, ran.out) == (203, "")
    assert remap.glexec_run("/usr/bin/id").code == 0


def test_a_vomsdir_that_others_could_change_refuses(remap: Site, voms_proxy: Path) -> None:
    remap.node.path(VOMSDIR).chmod(0o777)
    try:
        assert remap.glexec_run("/usr/bin/id", proxy=voms_proxy).code == 202
    finally:
        remap.node.path(VOMSDIR).chmod(0o755)


def test_a_banned_role(remap: Site, voms_proxy: Path) -> None:
    if remap.mapping == "lcmaps":
        remap.node.set_mapfile({**remap.mapfile, "/testvo/*": ".dt"})
    if remap.mapping == "dynamic":
        write(remap, AUTHORISED, '"/*"\n')
    assert remap.glexec_run("/usr/bin/id", proxy=voms_proxy).code == 0
    write(remap, BAN_FILE, '"/testvo/Role=production/*"\n')
    ran = remap.glexec_run("/usr/bin/id", proxy=voms_proxy)
    assert (ran.code, ran.out) == (203, "")
    assert "banned" in ran.err
    assert remap.glexec_run("/usr/bin/id").code == 0


def test_a_banned_role_in_the_proxy_that_the_payload_would_get(remap: Site, voms_proxy: Path) -> None:
    """Mapped by a plain proxy of the same person; the payload would hold the role all the same."""
    env = {"GLEXEC_SOURCE_PROXY": str(voms_proxy)}
    assert remap.glexec_run("/usr/bin/id", env=env).code == 0
    write(remap, BAN_FILE, '"/testvo/Role=production/*"\n')
    ran = remap.glexec_run("/usr/bin/id", env=env)
    assert (ran.code, ran.out) == (203, "")
    assert remap.glexec_run("/usr/bin/id").code == 0


# --- our own mapping ------------------------------------------------------------------------------------------------


def test_an_fqan_that_is_known_goes_before_the_dn(own: Site, voms_proxy: Path) -> None:
    own.node.set_mapfile({**own.mapfile, "/testvo/Role=production": "other"})
    assert own.glexec_run("/usr/bin/id", "-u", proxy=voms_proxy).out == f"{ALICE_UID}\n"
    own.node.set_mapfile({**own.mapfile, FQAN: "bob"})
    assert own.glexec_run("/usr/bin/id", "-u", proxy=voms_proxy).out == f"{BOB_UID}\n"
    assert own.last_record()["fqans"][0] == FQAN
    assert own.glexec_run("/usr/bin/id", "-u").out == f"{ALICE_UID}\n"


def test_another_role_is_another_lease(own: Site, voms_proxy: Path) -> None:
    own.node.set_mapfile({own.pki.dn("alice"): ".dt", "/testvo/*": ".dt"})
    by_role = own.glexec_run("/usr/bin/id", "-un", proxy=voms_proxy).out.strip()
    by_name = own.glexec_run("/usr/bin/id", "-un").out.strip()
    assert {by_role, by_name} == set(POOL)
    assert own.glexec_run("/usr/bin/id", "-un", proxy=voms_proxy).out.strip() == by_role


# --- LCMAPS ---------------------------------------------------------------------------------------------------------


def test_lcmaps_gives_a_role_a_pool_account_and_the_vos_group(lcmaps: Site, voms_proxy: Path) -> None:
    lcmaps.node.set_mapfile({**lcmaps.mapfile, "/testvo/*": ".dt"})
    ran = lcmaps.glexec_run("/bin/sh", "-c", "id -un; id -g; id -G", proxy=voms_proxy)
    name, group, groups = ran.out.splitlines()
    assert name in POOL, ran
    assert (group, groups) == (str(GROUPS[0]), str(GROUPS[0]))
    record = lcmaps.last_record()
    assert record["lease"] == "%2fo%3dtest%20grid%2fcn%3dalice%20example:" + GROUP
    assert (record["fqans"], record["gid"], record["user"]) == ([FQAN], GROUPS[0], name)
    assert lcmaps.glexec_run("/usr/bin/id", "-un").out == "alice\n"
    assert lcmaps.last_record()["fqans"] == []


def test_lcmaps_keeps_the_lease_of_a_role(lcmaps: Site, voms_proxy: Path) -> None:
    lcmaps.node.set_mapfile({**lcmaps.mapfile, "/testvo/*": ".dt"})
    names = {lcmaps.glexec_run("/usr/bin/id", "-un", proxy=voms_proxy).out for _ in range(3)}
    assert len(names) == 1


def test_lcmaps_and_a_role_that_it_does_not_know(lcmaps: Site, voms_proxy: Path) -> None:
    """Neither the role nor, without its line, the person: nothing runs."""
    lcmaps.node.set_mapfile({lcmaps.pki.dn("bob"): "bob"})
    assert lcmaps.glexec_run("/usr/bin/id", proxy=voms_proxy).code == 203


def test_a_vos_group_below_the_minimum_is_refused(lcmaps: Site, voms_proxy: Path) -> None:
    lcmaps.node.set_mapfile({**lcmaps.mapfile, "/testvo/*": ".dt"})
    mapfile = GRID_SECURITY / "group-mapfile"
    write(lcmaps, mapfile, '"/testvo/*" adm\n')
    try:
        assert lcmaps.glexec_run("/usr/bin/id", proxy=voms_proxy).code == 203
    finally:
        write(lcmaps, mapfile, f'"/testvo/*" {GROUP}\n')


# --- dynamic uids ---------------------------------------------------------------------------------------------------


def test_a_role_that_is_authorised_has_a_uid_of_its_own(dynamic: Site, voms_proxy: Path) -> None:
    write(dynamic, AUTHORISED, f'"{FQAN}"\n"{dynamic.pki.dn("alice")}"\n')
    by_role = [dynamic.glexec_run("/usr/bin/id", "-u", proxy=voms_proxy).out for _ in range(2)]
    assert dynamic.last_record()["fqans"] == [FQAN]
    by_name = dynamic.glexec_run("/usr/bin/id", "-u").out
    assert {*by_role, by_name} == {f"{ALICE_UID}\n", f"{BOB_UID}\n"}, "two roles of one person share nothing"
    write(dynamic, AUTHORISED, f'"{FQAN}"\n')
    assert dynamic.glexec_run("/usr/bin/id").code == 203
    assert dynamic.glexec_run("/usr/bin/id", proxy=voms_proxy).code == 0


def test_a_role_that_only_begins_like_an_authorised_one(dynamic: Site, voms_proxy: Path) -> None:
    for line in ("/testvo", "/testvo/Role=prod", "/testvo/Role=production", f"{FQAN}x", "/testvo/Role=NULL/*"):
        write(dynamic, AUTHORISED, f'"{line}"\n')
        assert dynamic.glexec_run("/usr/bin/id", proxy=voms_proxy).code == 203, line
