"""VOMS proxies through our own mapping: attributes count only when they verify."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, BOB_UID, POOL, Site, make_site
from support.voms import FQAN, VOMSDIR, allow_voms, put_voms_proxy

from airpanda_demo.worker_node import GRID_SECURITY

pytestmark = [pytest.mark.root, pytest.mark.integration]


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    for site in make_site():
        allow_voms(site)
        yield site


@pytest.fixture(scope="module")
def voms_proxy(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alice as a producer of testvo; its path on the node."""
    return put_voms_proxy(site, tmp_path_factory.mktemp("voms"))


@pytest.fixture(name="remap")
def restored_mapfile(site: Site) -> Iterator[Site]:
    yield site
    site.node.set_mapfile(site.mapfile)
    allow_voms(site)


def test_attributes_of_a_server_that_is_not_trusted_refuse(remap: Site, voms_proxy: Path) -> None:
    (remap.node.path(VOMSDIR) / "testvo" / "localhost.lsc").write_text("/O=Other/CN=voms\n/O=Other/CN=CA\n")
    assert remap.glexec_run("/usr/bin/id", proxy=voms_proxy).code == 203


def test_a_vomsdir_that_others_could_change_refuses(remap: Site, voms_proxy: Path) -> None:
    remap.node.path(VOMSDIR).chmod(0o777)
    try:
        assert remap.glexec_run("/usr/bin/id", proxy=voms_proxy).code == 202
    finally:
        remap.node.path(VOMSDIR).chmod(0o755)


def test_an_fqan_that_is_known_goes_before_the_dn(remap: Site, voms_proxy: Path) -> None:
    remap.node.set_mapfile({**remap.mapfile, "/testvo/Role=production": "other"})
    assert remap.glexec_run("/usr/bin/id", "-u", proxy=voms_proxy).out == f"{ALICE_UID}\n"
    remap.node.set_mapfile({**remap.mapfile, FQAN: "bob"})
    assert remap.glexec_run("/usr/bin/id", "-u", proxy=voms_proxy).out == f"{BOB_UID}\n"
    assert remap.last_record()["fqans"][0] == FQAN
    assert remap.glexec_run("/usr/bin/id", "-u").out == f"{ALICE_UID}\n"


def test_another_role_is_another_lease(remap: Site, voms_proxy: Path) -> None:
    remap.node.set_mapfile({remap.pki.dn("alice"): ".dt", "/testvo/*": ".dt"})
    by_role = remap.glexec_run("/usr/bin/id", "-un", proxy=voms_proxy).out.strip()
    by_name = remap.glexec_run("/usr/bin/id", "-un").out.strip()
    assert {by_role, by_name} == set(POOL)
    assert remap.glexec_run("/usr/bin/id", "-un", proxy=voms_proxy).out.strip() == by_role


def test_a_banned_role(remap: Site, voms_proxy: Path) -> None:
    ban = remap.node.path(GRID_SECURITY / "ban")
    ban.write_text('"/testvo/Role=production/*"\n')
    config = remap.node.path(Path("/run/airpanda/etc/glexec.conf"))
    text = config.read_text()
    config.write_text(f"{text}ban_file = {GRID_SECURITY}/ban\n")
    try:
        assert remap.glexec_run("/usr/bin/id", proxy=voms_proxy).code == 203
        assert remap.glexec_run("/usr/bin/id").code == 0
    finally:
        config.write_text(text)
