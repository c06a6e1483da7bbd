"""Which launcher and which mapping the worker node gets: what is installed decides, once, before the node is built.

After that nothing falls back: a sudo or an LCMAPS that is chosen and does not work ends the demonstration.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

SUDO = Path("/usr/bin/sudo")
LCMAPS_MODULES = (Path("/usr/lib/lcmaps"), Path("/usr/lib64/lcmaps"))
_PLUGINS = ("verify_proxy", "localaccount", "dummy_good")
_LOAD = (
    "import ctypes\n"
    "ctypes.CDLL('liblcmaps.so.0', mode=ctypes.RTLD_GLOBAL)\n"
    "ctypes.CDLL('liblcmaps_return_account_from_pem.so.0')\n"
)
_PACKAGES = "liblcmaps0, lcmaps-plugins-verify-proxy, lcmaps-plugins-basic-localaccount, lcmaps-plugins-basic-dummy"


@dataclass(frozen=True)
class Switching:
    """The choice. ``way`` is sudo or socket, ``mapping`` lcmaps or own, as the launcher's records call them."""

    way: str
    mapping: str
    modules: Optional[Path] = None
    """LCMAPS' plug-ins."""
    lacks: tuple[str, ...] = ()
    """Why it is not sudo with LCMAPS; a reason each."""

    @property
    def words(self) -> str:
        """For people."""
        way = {"sudo": "sudo's rule", "socket": "its root-owned socket"}[self.way]
        mapping = {"lcmaps": "the site's LCMAPS", "own": "airpanda's own mapping"}[self.mapping]
        why = f" ({'; '.join(self.lacks)})" if self.lacks else ""
        return f"the launcher is started by {way}, accounts come from {mapping}{why}"


def choose(python: Path, *, asked: str = "") -> Switching:
    """sudo and LCMAPS where they are installed and can work, each for itself; else the socket and our own mapping.

    Args:
        python: the interpreter of the launcher, which loads LCMAPS.
        asked: the setting that asks for the socket and our own mapping, whatever is installed; empty where none does.
    """
    if asked:
        return Switching("socket", "own", lacks=(f"{asked} asks for it",))
    no_sudo = why_no_sudo()
    modules, no_lcmaps = find_lcmaps(python)
    lacks = tuple(reason for reason in (no_sudo, no_lcmaps) if reason)
    return Switching("socket" if no_sudo else "sudo", "own" if no_lcmaps else "lcmaps", modules, lacks)


def why_no_sudo() -> str:
    """Why the launcher cannot be started by sudo on this machine; empty where it can."""
    try:
        status = SUDO.stat()
    except FileNotFoundError:
        return "sudo is not installed"
    if not status.st_mode & stat.S_ISUID or status.st_uid != 0 or shutil.which("visudo", path="/usr/sbin") is None:
        return "sudo is not installed as a whole"
    if os.statvfs(SUDO).f_flag & os.ST_NOSUID:
        return f"sudo cannot work here: {SUDO.parent} is mounted nosuid"
    if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        return "sudo cannot work here: this process was started with no_new_privs"
    return ""


def find_lcmaps(python: Path) -> tuple[Optional[Path], str]:
    """The directory of LCMAPS' plug-ins, or None and why there is none."""
    for modules in LCMAPS_MODULES:
        if all((modules / f"lcmaps_{name}.mod").is_file() for name in _PLUGINS):
            break
    else:
        return None, f"LCMAPS is not installed; Debian's packages are {_PACKAGES}"
    loaded = subprocess.run([python, "-I", "-S", "-c", _LOAD], capture_output=True, timeout=60)
    if loaded.returncode != 0:
        return None, f"LCMAPS' libraries are not installed, or {python} cannot load them"
    return modules, ""


def lcmaps_db(modules: Path, grid_security: Path) -> str:
    """LCMAPS' configuration: it verifies the proxy itself, then takes the account from the grid-mapfile."""
    return f"""\
# LCMAPS of the demonstration's worker node. The launcher switches, so no policy ends with posix_enf.
path = {modules}
verify_proxy = "lcmaps_verify_proxy.mod" "-certdir {grid_security}/certificates" "--disallow-limited-proxy"
localaccount = "lcmaps_localaccount.mod" "-gridmapfile {grid_security}/grid-mapfile"
good = "lcmaps_dummy_good.mod"

glexec_get_account:
verify_proxy -> localaccount
localaccount -> good
"""
