"""Nodes that differ only in how the launcher maps: own, LCMAPS, dynamic uids. The same people on each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from airpanda_demo.worker_node import GRID_SECURITY
from support.launcher import ACCOUNTS, ALICE_UID, BOB_UID, MAPPER_UID, POOL, WORK, Site, make_site
from support.need import absent

MAPPINGS = ("own", "lcmaps", "dynamic")
POOL_DIRECTORY = {"own": GRID_SECURITY / "gridmapdir", "lcmaps": GRID_SECURITY / "lcmaps-gridmapdir"}
BAN_FILE = GRID_SECURITY / "ban-mapfile"

DATABASE, LEASES = GRID_SECURITY / "lcmaps.db", Path("/run/airpanda/leases")
AUTHORISED = GRID_SECURITY / "authorised"
_MODULES = Path("/usr/lib/lcmaps")
_NEEDED = ("verify_proxy", "localaccount", "poolaccount", "ban_dn", "dummy_good")
_TEXT = f"""path = {_MODULES}
verify_proxy = "lcmaps_verify_proxy.mod" "-certdir {GRID_SECURITY}/certificates" "--disallow-limited-proxy"
ban_dn = "lcmaps_ban_dn.mod" "-banmapfile {GRID_SECURITY}/ban-mapfile"
localaccount = "lcmaps_localaccount.mod" "-gridmapfile {GRID_SECURITY}/grid-mapfile"
poolaccount = "lcmaps_poolaccount.mod" "-gridmapfile {GRID_SECURITY}/grid-mapfile" \
"-gridmapdir {GRID_SECURITY}/lcmaps-gridmapdir" "-strict_poolprefix_match yes"
good = "lcmaps_dummy_good.mod"

glexec_get_account:
verify_proxy -> ban_dn
ban_dn -> localaccount
localaccount -> good | poolaccount
"""


def mapped_site(mapping: str, **options: str) -> Iterator[Site]:
    """A site where Alice and Bob are mapped in this way, nobody else is, and a ban file is in force.

    With dynamic uids the node has no accounts for them, but the range is just their usual uids, and each has its own.
    """
    more = {
        "own": {"ban_file": str(BAN_FILE)},
        "lcmaps": {"mapping": "lcmaps", "lcmaps_db": str(DATABASE), "lcmaps_user": "mapper", "lease_dir": str(LEASES)},
        "dynamic": {
            "mapping": "dynamic",
            "authorised": str(AUTHORISED),
            "uid_range": f"{ALICE_UID}-{BOB_UID}",
            "lease_dir": str(LEASES),
            "payload_dirs": f"/home/alice\n/home/bob\n{WORK}",
            "ban_file": str(BAN_FILE),
        },
    }[mapping]
    if mapping == "lcmaps":
        _need_lcmaps()
    people = ("alice", "bob")
    accounts = [a for a in ACCOUNTS if mapping != "dynamic" or a.name not in people]
    for site in make_site(accounts=accounts, **{**more, **options}):
        write(site, BAN_FILE, "")
        write(site, DATABASE, _TEXT)
        authorise(site, *people)
        _make_lcmaps_pool(site)
        if mapping == "dynamic":
            _make_homes(site)
            if not options:
                for who, uid in zip(people, (ALICE_UID, BOB_UID), strict=True):
                    assert site.glexec_run("/usr/bin/id", "-u", proxy=site.put_proxy(who)).out == f"{uid}\n"
        yield site


def _make_lcmaps_pool(site: Site) -> None:
    pool = site.node.path(POOL_DIRECTORY["lcmaps"])
    for path in (pool, *(pool / name for name in POOL)):
        path.mkdir() if path == pool else path.touch()
        os.chown(path, MAPPER_UID, MAPPER_UID)


def _make_homes(site: Site) -> None:
    for who, uid in (("alice", ALICE_UID), ("bob", BOB_UID)):
        home = site.node.path(Path("/home", who))
        home.mkdir(mode=0o700)
        os.chown(home, uid, uid)


mapped = contextlib.contextmanager(mapped_site)


def write(site: Site, inside: Path, text: str) -> None:
    """A file of the site's, as root writes it."""
    site.node.path(inside).write_text(text)
    site.node.path(inside).chmod(0o644)


def authorise(site: Site, *people: str) -> None:
    """Who may have a dynamic uid."""
    write(site, AUTHORISED, "".join(f'"{site.pki.dn(who)}"\n' for who in people))


def ban(site: Site, *people: str) -> None:
    write(site, BAN_FILE, "".join(f'"{site.pki.dn(who)}"\n' for who in people))


def _need_lcmaps() -> None:
    missing = [name for name in _NEEDED if not (_MODULES / f"lcmaps_{name}.mod").exists()]
    if missing:
        absent(f"NOT TESTED: LCMAPS plug-ins {', '.join(missing)} are missing (tests/install-system-packages)")
