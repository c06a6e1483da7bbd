"""A real systemd on a worker node: the first process of namespaces of its own, with a cgroup of its own. Needs root.

It knows the units in /etc/systemd/system alone, and of Debian's own none but the bare targets that others come after.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.launcher import Ran, Site, wait_for
from support.need import absent, need_program

UNITS = Path("/etc/systemd/system")
_PROGRAM = "/lib/systemd/systemd"
_TARGETS = ("basic", "multi-user", "shutdown", "sockets", "sysinit")
_UNIT_PATH = f"SYSTEMD_UNIT_PATH={UNITS}"
# It sees no cgroup of this machine but its own, into which it goes first, and may not set what the kernel has for all;
# its /run is the node's.
_BEGIN = f"""
echo 0 >"$0/cgroup.procs" && exec unshare --mount --pid --fork --kill-child --cgroup --mount-proc /bin/sh -c '
    mount --make-rprivate / && mount -t cgroup2 none /sys/fs/cgroup && mkdir -p /run/systemd/system &&
    mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys &&
    exec env -i container=node {_UNIT_PATH} {_PROGRAM} --system --unit=basic.target --log-target=null'
"""


class Systemd:
    """A running one, in this cgroup."""

    def __init__(self, group: Path) -> None:
        self._group = group

    def ctl(self, *words: str) -> Ran:
        """``systemctl``, in its own namespaces: of who is outside it cannot tell the process, and does not listen."""
        scope = self._group / "init.scope" / "cgroup.procs"
        first = scope.read_text().split()[:1] if scope.exists() else []
        if not first:
            return Ran(1, "", "it has not begun")
        enter = ["nsenter", f"--target={first[0]}", "--mount", "--pid", "--", "env", _UNIT_PATH]
        done = subprocess.run([*enter, "systemctl", *words], capture_output=True, text=True, timeout=60)
        return Ran(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def running_systemd(site: Site) -> Iterator[Systemd]:
    """All that it has started ends with it."""
    need_program("systemctl", "systemd")
    group = _cgroups() / f"airpanda-systemd-{secrets.token_hex(6)}"
    try:
        group.mkdir()
    except OSError as error:
        absent(f"NOT TESTED: systemd needs a cgroup of its own, and none can be made: {error.strerror}")
    for name in _TARGETS:
        unit = f"[Unit]\nDescription={name}\nDefaultDependencies=no\n"
        site.node.path(UNITS / f"{name}.target").write_text(unit)
    with (site.node.directory / "systemd.log").open("ab") as log:
        argv = [*site.node.root_argv(), "/bin/sh", "-c", _BEGIN, str(group)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    systemd = Systemd(group)
    try:
        wait_for(lambda: systemd.ctl("is-system-running").out.strip() == "running", 60)
        yield systemd
    finally:
        (group / "cgroup.kill").write_text("1")
        process.wait()
        wait_for(lambda: _is_removed(group))


def _cgroups() -> Path:
    """Where this machine has its cgroups of version 2."""
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    found = next((fields[4] for fields in mounts if "cgroup2" in fields[6:]), None)
    if found is None:
        absent("NOT TESTED: this machine has no cgroup v2")
    return Path(found)


def _is_removed(group: Path) -> bool:
    for place, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):  # its processes are on their way out
            os.rmdir(place)
    return not group.exists()
