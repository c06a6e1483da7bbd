"""``glexec check``: every step can fail, says in words what is wrong, and is the last one then; glexec agrees."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, PILOT_UID, Ran, Site
from support.launcher_mappings import (
    AUTHORISED,
    BAN_FILE,
    DATABASE,
    LEASES,
    MAPPINGS,
    POOL_DIRECTORY,
    authorise,
    ban,
    mapped_site,
)
from support.voms import VOMSDIR, allow_voms, put_voms_proxy

from airpanda.x509.proxy import create_proxy
from airpanda_demo.worker_node import GRID_SECURITY, LOG, PREFIX

pytestmark = [pytest.mark.root, pytest.mark.integration]

CONFIG = PREFIX / "etc" / "glexec.conf"


@pytest.fixture(scope="module", name="site", params=MAPPINGS)
def node_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    for site in mapped_site(request.param, ban_file=str(BAN_FILE)):
        allow_voms(site)
        yield site


def check(site: Site, proxy: Path, *, caller: str = "pilot", account: str = "root") -> Ran:
    code = f"import sys; sys.path.insert(0, {str(PREFIX / 'lib')!r}); from airpanda.glexec.cli import main; "
    code += f"sys.exit(main(['check', '--prefix', {str(PREFIX)!r}, '--caller', {caller!r}, {str(proxy)!r}]))"
    if account != "root":
        return site.run(sys.executable, "-B", "-I", "-c", code, account=account)
    return site.as_root(sys.executable, "-B", "-I", "-c", code)


def wrong(ran: Ran) -> str:
    """The one step that is wrong: the last."""
    *good, last = ran.out.splitlines()
    assert ran.code == 1, ran
    assert "Traceback" not in ran.err
    assert all(line.startswith("ok     ") for line in good), ran
    assert last.startswith("WRONG  "), ran
    assert "PRIVATE" not in ran.out
    return last


@contextmanager
def changed(site: Site, path: Path, mode: int | None = None, uid: int | None = None) -> Iterator[None]:
    outside = site.node.path(path)
    before = outside.stat()
    if uid is not None:
        os.chown(outside, uid, -1)
    if mode is not None:
        outside.chmod(mode)
    try:
        yield
    finally:
        os.chown(outside, before.st_uid, -1)
        outside.chmod(before.st_mode & 0o7777)


@contextmanager
def text(site: Site, path: Path, content: str | None) -> Iterator[None]:
    """Another content for a while; None is no file."""
    outside = site.node.path(path)
    before = outside.read_text()
    if content is None:
        outside.unlink()
    else:
        outside.write_text(content.replace("{whole}", before))
    try:
        yield
    finally:
        outside.write_text(before)


@contextmanager
def mapped_to(site: Site, target: str) -> Iterator[None]:
    site.node.set_mapfile({site.pki.dn("alice"): target})
    try:
        yield
    finally:
        site.node.set_mapfile(site.mapfile)


@contextmanager
def banned(site: Site) -> Iterator[None]:
    ban(site, "alice")
    try:
        yield
    finally:
        ban(site)


@contextmanager
def authorised(site: Site, *people: str) -> Iterator[None]:
    authorise(site, *people)
    try:
        yield
    finally:
        authorise(site, "alice", "bob")


def test_all_is_well(site: Site) -> None:
    """And what it says is what a launch then does."""
    ran = check(site, site.put_proxy())
    assert (ran.code, "WRONG" in ran.out) == (0, False), ran
    assert site.pki.dn("alice") in ran.out
    launched = site.glexec_run("/usr/bin/id", "-u")
    assert launched.out == f"{ALICE_UID}\n"
    if site.mapping != "dynamic":
        assert f"alice (uid {ALICE_UID}" in ran.out
    before = len(site.node.events())
    assert check(site, site.put_proxy("bob")).code == 0
    assert len(site.node.events()) == before, "nothing was started"


def test_its_attributes_are_told(site: Site, tmp_path: Path) -> None:
    ran = check(site, put_voms_proxy(site, tmp_path))
    assert "its VOMS attributes are verified: /testvo/Role=production/Capability=NULL" in ran.out, ran


def test_for_root_only(site: Site) -> None:
    assert "run this as root" in wrong(check(site, Path("/x"), account="pilot"))


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, the words for it, and glexec's code."""

    name: str
    act: Callable[[Site], object]
    words: str
    code: int
    mappings: tuple[str, ...] = MAPPINGS


SITE = [
    Fault("configuration missing", lambda s: text(s, CONFIG, None), "No such file", 202),
    Fault("configuration open", lambda s: changed(s, CONFIG, 0o666), "is writable by group or others", 202),
    Fault("configuration malformed", lambda s: text(s, CONFIG, "{whole}\nhidee = /x\n"), "no option 'hidee'", 202),
    Fault("log's place open", lambda s: changed(s, LOG.parent, 0o777), "is writable by group or others", 202),
    Fault(
        "hidden by others' names",
        lambda s: text(s, CONFIG, "{whole}hide = /home/alice/x\n"),
        f"/home/alice belongs to uid {ALICE_UID}",
        202,
    ),
    Fault("authorities open", lambda s: changed(s, GRID_SECURITY / "certificates", 0o777), "writable by group", 202),
    Fault("ban file open", lambda s: changed(s, BAN_FILE, 0o666), "is writable by group or others", 202),
    Fault("banned", banned, "this identity is banned", 203),
    Fault("mapfile open", lambda s: changed(s, GRID_SECURITY / "grid-mapfile", 0o666), "is writable", 202, ("own",)),
    Fault("mapfile missing", lambda s: text(s, GRID_SECURITY / "grid-mapfile", None), "No such file", 202, ("own",)),
    Fault("account missing", lambda s: mapped_to(s, "nobody-here"), "which does not exist here", 203, ("own",)),
    Fault("account not known to LCMAPS", lambda s: mapped_to(s, "nobody-here"), "does not map", 203, ("lcmaps",)),
    Fault("root's account", lambda s: mapped_to(s, "root"), "uid 0, under 1000", 203, ("own",)),
    Fault("a low uid", lambda s: mapped_to(s, "low"), "has uid 900, under 1000", 203, ("own", "lcmaps")),
    Fault("a low group", lambda s: mapped_to(s, "system"), "under the minimum gid", 203, ("own", "lcmaps")),
    Fault("the pilot's account", lambda s: mapped_to(s, "pilot"), "is the caller's own", 203, ("own", "lcmaps")),
    Fault("LCMAPS' database missing", lambda s: text(s, DATABASE, None), "No such file", 202, ("lcmaps",)),
    Fault(
        "LCMAPS' database malformed", lambda s: text(s, DATABASE, "x ->\n"), "LCMAPS cannot be used", 202, ("lcmaps",)
    ),
    Fault("not authorised", lambda s: authorised(s, "bob"), "has no line for this identity", 203, ("dynamic",)),
    Fault("list of the authorised open", lambda s: changed(s, AUTHORISED, 0o666), "is writable", 202, ("dynamic",)),
    Fault("leases open", lambda s: changed(s, LEASES, 0o777), "is writable", 202, ("dynamic",)),
    Fault(
        "an account in the range",
        lambda s: text(s, Path("/etc/passwd"), f"{{whole}}late:x:{ALICE_UID}:{ALICE_UID}::/:/bin/sh\n"),
        "which is an account of this machine",
        202,
        ("dynamic",),
    ),
]


@pytest.mark.parametrize("fault", SITE, ids=lambda fault: fault.name)
def test_what_is_wrong_with_the_site(site: Site, fault: Fault) -> None:
    if site.mapping not in fault.mappings:
        pytest.skip(f"about mapping = {', '.join(fault.mappings)}")
    proxy = site.put_proxy()
    with fault.act(site):  # type: ignore[attr-defined]
        last = wrong(check(site, proxy))
        launched = site.glexec_run("/usr/bin/id", proxy=proxy)
    assert fault.words in last
    assert f"(glexec would return {fault.code})" in last
    assert (launched.code, launched.out) == (fault.code, "")


def expired(site: Site) -> bytes:
    made = create_proxy(site.credential("alice"), lifetime=timedelta(seconds=1), now=datetime.now(UTC))
    time.sleep(1.5)
    return made.to_pem().reveal()


def whole(site: Site) -> bytes:
    return site.proxy().to_pem().reveal()


@pytest.mark.parametrize(
    ("make", "words", "code"),
    [
        (lambda s: Path("/home/pilot/missing"), "No such file", 201),
        (lambda s: s.put(whole(s), mode=0o640), "chmod 600", 201),
        (lambda s: s.put(whole(s), uid=ALICE_UID), "Permission denied", 201),
        (lambda s: s.put(b"garbage"), "there is no certificate", 201),
        (lambda s: s.put(s.credential("alice").to_pem().reveal()), "end-entity certificate", 201),
        (lambda s: s.put(expired(s)), "expired", 203),
        (lambda s: s.put_proxy(limited=True), "limited", 203),
        (lambda s: s.put_proxy("carol"), "", 203),
    ],
    ids=["missing", "open", "another's", "garbage", "no proxy", "expired", "limited", "unmapped"],
)
def test_what_is_wrong_with_the_proxy(site: Site, make: Callable[[Site], Path], words: str, code: int) -> None:
    proxy = make(site)
    last = wrong(check(site, proxy))
    assert words in last
    assert f"(glexec would return {code})" in last
    launched = site.glexec_run("/usr/bin/id", proxy=proxy)
    assert (launched.code, launched.out) == (code, "")


def test_what_is_wrong_with_its_attributes(site: Site, tmp_path: Path) -> None:
    proxy = put_voms_proxy(site, tmp_path)
    (site.node.path(VOMSDIR) / "testvo" / "localhost.lsc").write_text("/O=Other/CN=voms\n/O=Other/CN=CA\n")
    try:
        last = wrong(check(site, proxy))
        assert site.glexec_run("/usr/bin/id", proxy=proxy).code == 203
    finally:
        allow_voms(site)
    assert "(glexec would return 203)" in last
    assert "may not speak for testvo" in last


@pytest.mark.parametrize(
    ("caller", "words", "code"),
    [("nobody-here", "there is no account nobody-here", 202), ("other", "is not among the callers", 203)],
)
def test_what_is_wrong_with_the_caller(site: Site, caller: str, words: str, code: int) -> None:
    last = wrong(check(site, site.put_proxy(), caller=caller))
    assert words in last
    assert f"(glexec would return {code})" in last


def test_a_pool_that_cannot_be_used(site: Site) -> None:
    if site.mapping != "own":
        pytest.skip("about our own gridmapdir")
    with mapped_to(site, ".dt"):
        assert "an account of pool .dt" in check(site, site.put_proxy()).out
        with changed(site, POOL_DIRECTORY["own"], uid=PILOT_UID):
            assert f"belongs to uid {PILOT_UID}" in wrong(check(site, site.put_proxy()))
            assert site.glexec_run("/usr/bin/id").code == 202


def test_a_log_that_leads_elsewhere(site: Site) -> None:
    log = site.node.path(LOG)
    kept = log.with_name(f"kept-{secrets.token_hex(4)}")
    log.rename(kept)
    log.symlink_to("/etc/passwd")
    try:
        assert "cannot be written" in wrong(check(site, site.put_proxy()))
        assert site.glexec_run("/usr/bin/id").code == 202
    finally:
        log.unlink()
        kept.rename(log)
