"""Nodes that differ only in how the launcher maps: own, LCMAPS, dynamic uids. The same people on each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from airpanda_demo.worker_node import GRID_SECURITY
from support.launcher import MAPPER_UID, PILOT_UID, POOL, Site, make_site
from support.need import absent

MAPPINGS = ("own", "lcmaps", "dynamic")
PAYLOADS = Path("/run/payloads")
DYNAMIC_UIDS = (1_500_000_000 + os.getpid() % 10_000 * 100, 3)
"""First uid and their number."""

_DATABASE = GRID_SECURITY / "lcmaps.db"
_AUTHORISED = GRID_SECURITY / "authorised"
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
    """A site where Alice and Bob are mapped in this way, nobody else is, and a ban file is in force."""
    first, count = DYNAMIC_UIDS
    more = {
        "own": {"ban_file": f"{GRID_SECURITY}/ban-mapfile"},
        "lcmaps": {"mapping": "lcmaps", "lcmaps_db": str(_DATABASE), "lcmaps_user": "mapper"},
        "dynamic": {
            "mapping": "dynamic",
            "authorised": str(_AUTHORISED),
            "uid_range": f"{first}-{first + count - 1}",
            "lease_dir": "/run/airpanda/leases",
            "payload_dirs": str(PAYLOADS),
            "ban_file": f"{GRID_SECURITY}/ban-mapfile",
        },
    }[mapping]
    if mapping == "lcmaps":
        _need_lcmaps()
    for site in make_site(**more, **options):
        write(site, GRID_SECURITY / "ban-mapfile", "")
        write(site, _DATABASE, _TEXT)
        authorise(site, "alice", "bob")
        pool = site.node.path(GRID_SECURITY / "lcmaps-gridmapdir")
        for path in (pool, *(pool / name for name in POOL)):
            path.mkdir() if path == pool else path.touch()
            os.chown(path, MAPPER_UID, MAPPER_UID)
        payloads = site.node.path(PAYLOADS)
        payloads.mkdir()
        os.chown(payloads, PILOT_UID, PILOT_UID)
        payloads.chmod(0o711)
        yield site


mapped = contextlib.contextmanager(mapped_site)


def write(site: Site, inside: Path, text: str) -> None:
    """A file of the site's, as root writes it."""
    site.node.path(inside).write_text(text)
    site.node.path(inside).chmod(0o644)


def authorise(site: Site, *people: str) -> None:
    """Who may have a dynamic uid."""
    write(site, _AUTHORISED, "".join(f'"{site.pki.dn(who)}"\n' for who in people))


def ban(site: Site, *people: str) -> None:
    write(site, GRID_SECURITY / "ban-mapfile", "".join(f'"{site.pki.dn(who)}"\n' for who in people))


def _need_lcmaps() -> None:
    missing = [name for name in _NEEDED if not (_MODULES / f"lcmaps_{name}.mod").exists()]
    if missing:
        absent(f"NOT TESTED: LCMAPS plug-ins {', '.join(missing)} are missing (tests/install-system-packages)")
