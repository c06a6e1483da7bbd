"""VOMS attributes without a VOMS server, made by Debian's ``voms-proxy-fake`` and trusted by a node."""

from __future__ import annotations

import subprocess
from pathlib import Path

from airpanda_demo.worker_node import GRID_SECURITY
from support.launcher import HOME, PILOT_UID, Site
from support.need import need_program

VOMSDIR = GRID_SECURITY / "vomsdir"
FQAN = "/testvo/Role=production/Capability=NULL"


def allow_voms(site: Site) -> None:
    """Trust the host certificate as the VO's VOMS server."""
    directory = site.node.path(VOMSDIR) / "testvo"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "localhost.lsc").write_text(f"{site.pki.demo.dn('host')}\n{site.pki.demo.dn('ca')}\n")


def voms_proxy(site: Site, out: Path) -> bytes:
    """Alice as a producer of testvo; ``out`` is where the program may write."""
    (cert, key), host = site.pki.user("alice"), site.pki.host()
    options = {
        "cert": cert,
        "key": key,
        "certdir": site.pki.ca_dir,
        "hostcert": host.cert,
        "hostkey": host.key,
        "voms": "testvo",
        "uri": "localhost:15000",
        "fqan": FQAN,
        "bits": "2048",
        "hours": "12",
        "out": out,
    }
    argv = [need_program("voms-proxy-fake", "voms-clients"), "-rfc", "-newformat"]
    argv += [str(part) for name, value in options.items() for part in (f"-{name}", value)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert out.exists(), done
    return out.read_bytes()


def put_voms_proxy(site: Site, scratch: Path, *, uid: int = PILOT_UID, where: Path = HOME) -> Path:
    """Such a proxy on the node; its path there."""
    return site.put(voms_proxy(site, scratch / f"voms-{uid}"), uid=uid, where=where)
