"""Inside of a worker node: a supervisor on the host, and the node's first process, which builds it.

The supervisor's standard input is its lifeline: one line with the specification, and its end means stop.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from airpanda.core.errors import AirpandaError, ConfigurationError
from airpanda.glexec.contract import CLIENT_ERROR
from airpanda.glexec.install import install
from airpanda.glexec.launcher import kernel
from airpanda.glexec.launcher.plan import is_below
from airpanda.glexec.launcher.view import outermost
from airpanda.glexec.sudo_rule import DEFAULT_RULE
from airpanda_demo.worker_node import GRID_SECURITY, INSTALLED, LOG, PREFIX, SUDO_LOG

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - each is replaced by an empty one
_EMPTY = ("/home", "/root", "/run")
_PRIVATE_IN_ETC = ("shadow*", "gshadow*", "passwd*", "group*", "sub?id*", "ssh", "sudoers*", "private", "grid-security")
_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV
_FIRST_HUMAN, _NOBODY = 1000, 65534
_ANSWER_S = 30
_RESPAWN_S = 0.2


def main() -> int:
    """The supervisor: holds the node until its lifeline ends or the node does."""
    spec = json.loads(sys.stdin.readline())
    supervisor = os.getpid()
    kernel.unshare(kernel.CLONE_NEWPID)
    init = os.fork()
    if init == 0:
        _run_init(spec, supervisor)
    print(f"init {init}", flush=True)
    end = os.pidfd_open(init)
    select.select([sys.stdin.fileno(), end], [], [])
    os.kill(init, signal.SIGKILL)
    os.waitpid(init, 0)
    return 0


def _run_init(spec: dict[str, Any], supervisor: int) -> NoReturn:
    """Never returns. Says ``ready`` or ``failed REASON``."""
    try:
        # The parent is outside of this PID namespace, so getppid() is 0; the lifeline covers an earlier death.
        kernel.die_with_parent(signal.SIGKILL, 0)
        os.umask(0o022)
        _build(spec)
        launcherd = None if spec["sudo"] else _start_daemon()
        _check_interpreter(spec)
        if launcherd is None:
            _check_sudo(spec)
        else:
            _wait_for_launcher(launcherd)
        print("ready", flush=True)
        _reap(launcherd, respawn=spec["respawn"])
    except (AirpandaError, OSError, subprocess.SubprocessError) as error:
        print(f"failed {' '.join(str(error).split())}", flush=True)
    finally:
        os._exit(1)


def _start_daemon() -> subprocess.Popen[bytes]:
    return subprocess.Popen([INSTALLED.launcherd], stdin=subprocess.DEVNULL, stdout=sys.stderr, close_fds=True)


def _check_interpreter(spec: dict[str, Any]) -> None:
    """From in here: a program that comes from outside holds the node's end up when its parent is killed."""
    _, uid, _ = spec["accounts"][0]
    command = [spec["python"], "-I", "-c", "import ssl, cryptography"]
    try:
        tried = subprocess.run(
            command, user=uid, group=uid, extra_groups=[], capture_output=True, text=True, timeout=60
        )
        reason = "" if tried.returncode == 0 else (tried.stderr.strip().splitlines() or ["no message"])[-1]
    except OSError as error:
        reason = str(error)
    if reason:
        raise ConfigurationError(f"{spec['python']} cannot be used by the node's accounts: {reason}")


def _wait_for_launcher(launcherd: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_ANSWER_S)
            if probe.connect_ex(str(INSTALLED.socket)) == 0:
                probe.shutdown(socket.SHUT_WR)
                probe.recv(1024)  # a refusal, which is in the log by now: root is no caller, or has asked nothing
                return
        if launcherd.poll() is not None:
            break
        time.sleep(0.05)
    raise ConfigurationError("the launcher's daemon did not start")


def _check_sudo(spec: dict[str, Any]) -> None:
    """As the pilot, by sudo's rule: the launcher itself must answer, and ask for a proxy."""
    _, uid, _ = spec["accounts"][0]
    command = [str(INSTALLED.glexec_sudo), "/bin/true"]
    tried = subprocess.run(
        command,
        user=uid,
        group=uid,
        extra_groups=[],
        env={},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=_ANSWER_S,
    )
    if tried.returncode != CLIENT_ERROR:
        reason = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigurationError(f"the launcher cannot be used by sudo's rule ({tried.returncode}): {reason}")


def _reap(launcherd: subprocess.Popen[bytes] | None, *, respawn: bool) -> None:
    """Reap orphans until the launcher's daemon ends: a node without a launcher is no node.

    With ``respawn`` another daemon takes its place after a moment, as systemd has it.
    """
    if launcherd is None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
        while True:
            signal.pause()
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == launcherd.pid:
            launcherd.returncode = os.waitstatus_to_exitcode(status)
            if not respawn:
                return
            time.sleep(_RESPAWN_S)
            launcherd = _start_daemon()


def _build(spec: dict[str, Any]) -> None:
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    socket.sethostname(spec["hostname"])
    software = list(dict.fromkeys(spec["software"]))
    roots = _covered(software, spec["hide"])
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in software}
    # /run first: the launcher and /etc are copied into it while their sources can still be seen.
    _cover("/run")
    _make_etc(spec)
    _install_launcher(spec)
    for root in roots:
        if root != "/run" and os.path.isdir(root):
            _cover(root)
    for path in sorted(sources):
        _show(path, sources[path], hidden=any(is_below(path, root) for root in roots))
    for name, uid, _ in spec["accounts"]:
        _own_directory(Path("/home", name), uid, 0o700)
    kernel.mount("proc", "/proc", "proc", _FLAGS | kernel.MS_NOEXEC)


def _covered(software: list[str], hide: list[str]) -> list[str]:
    """What gets an empty file system: the usual places, the hidden ones, and closed directories above software."""
    closed = [parent for path in software if (parent := _first_closed_parent(path)) is not None]
    return outermost([*_TEMPORARY, *_EMPTY, *map(os.path.realpath, hide), *closed])


def _first_closed_parent(path: str) -> str | None:
    parents = [str(parent) for parent in reversed(Path(path).parents)]
    return next((p for p in parents if not os.stat(p).st_mode & stat.S_IXOTH), None)


def _cover(path: str) -> None:
    mode = 1777 if path in _TEMPORARY else 755
    kernel.mount("tmpfs", path, "tmpfs", _FLAGS, f"mode={mode:04d}")


def _show(path: str, source: int, *, hidden: bool) -> None:
    """Bind a directory read-only at its own path; one that contains another shown one comes first."""
    if hidden:
        os.makedirs(path, mode=0o755, exist_ok=True)
    kernel.bind(f"/proc/self/fd/{source}", path, read_only=True)
    os.close(source)


def _own_directory(path: Path, uid: int, mode: int) -> None:
    path.mkdir()
    os.chown(path, uid, uid)
    path.chmod(mode)


def _make_etc(spec: dict[str, Any]) -> None:
    etc = Path("/run/.etc")
    ignore = shutil.ignore_patterns(*_PRIVATE_IN_ETC)
    shutil.copytree("/etc", etc, symlinks=True, ignore=ignore)
    resolver = Path("/etc/resolv.conf")
    if resolver.is_symlink() and resolver.exists():  # it usually points into /run, which is empty here
        (etc / "resolv.conf").unlink()
        shutil.copyfile(resolver, etc / "resolv.conf")
    _write_accounts(etc, spec["accounts"])
    (etc / "nsswitch.conf").write_text(
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n"
    )
    (etc / "hostname").write_text(f"{spec['hostname']}\n")
    with (etc / "hosts").open("a") as hosts:
        hosts.write(f"127.0.1.1 {spec['hostname']}\n")
    kernel.mount(str(etc), "/etc", None, kernel.MS_BIND)


def _write_accounts(etc: Path, accounts: list[Any]) -> None:
    """The host's system accounts and the node's own; none has a password."""
    system = [line for line in _lines("/etc/passwd") if _is_system(line)]
    groups = [line.rsplit(":", 1)[0] + ":" for line in _lines("/etc/group") if _is_system(line)]
    names = {uid: name for name, uid, _ in accounts}
    members: dict[int, list[str]] = {gid: [] for gid in names}
    for name, _, others in accounts:
        for gid in others:
            members.setdefault(gid, []).append(name)
        system.append(f"{name}:x:{_uid(accounts, name)}:{_uid(accounts, name)}::/home/{name}:/bin/sh")
    groups += [f"{names.get(gid, f'group{gid}')}:x:{gid}:{','.join(who)}" for gid, who in members.items()]
    locked = [f"{line.split(':', 1)[0]}:*:19000:0:99999:7:::" for line in system]
    for name, lines, mode in (("passwd", system, 0o644), ("group", groups, 0o644), ("shadow", locked, 0o600)):
        (etc / name).write_text("\n".join(lines) + "\n")
        (etc / name).chmod(mode)


def _uid(accounts: list[Any], name: str) -> int:
    return next(int(uid) for other, uid, _ in accounts if other == name)


def _lines(path: str) -> list[str]:
    return [line for line in Path(path).read_text(errors="replace").splitlines() if line.count(":") >= 3]


def _is_system(line: str) -> bool:
    number = int(line.split(":")[2])
    return number < _FIRST_HUMAN or number == _NOBODY


def _install_launcher(spec: dict[str, Any]) -> None:
    certificates = GRID_SECURITY / "certificates"
    shutil.copytree(spec["ca_dir"], certificates, copy_function=shutil.copyfile)
    if spec["vomsdir"]:
        shutil.copytree(spec["vomsdir"], GRID_SECURITY / "vomsdir", copy_function=shutil.copyfile)
    for path in (GRID_SECURITY, certificates):
        path.chmod(0o755)
    (GRID_SECURITY / "grid-mapfile").write_text(spec["mapfile"])
    options = {"show": "\n".join(spec["software"]), "syslog": "no", **spec["options"]}
    if spec["pools"]:
        gridmapdir = GRID_SECURITY / "gridmapdir"
        gridmapdir.mkdir()
        for name in spec["pools"]:
            (gridmapdir / name).touch()
        options["gridmapdir"] = str(gridmapdir)
    if spec["lcmaps_db"]:
        database = GRID_SECURITY / "lcmaps.db"
        database.write_text(spec["lcmaps_db"])
        options.update(mapping="lcmaps", lcmaps_db=str(database))
    if spec["sudo"]:
        _configure_sudo()
    LOG.parent.mkdir(mode=0o755, parents=True)
    install(
        PREFIX,
        python=Path(spec["python"]),
        callers=[spec["accounts"][0][0]],
        ca_dir=certificates,
        mapfile=GRID_SECURITY / "grid-mapfile",
        log_file=LOG,
        socket=INSTALLED.socket,
        options=options,
        sudoers=DEFAULT_RULE if spec["sudo"] else None,
        check_python=False,  # the node shows it read-only, and root has chosen to start the node from it
    )


def _configure_sudo() -> None:
    """The node's sudo has no rule but the launcher's. It logs into a file of its own, which root alone can read."""
    rules = DEFAULT_RULE.parent
    rules.mkdir(mode=0o750)
    main = rules.parent / "sudoers"
    lines = ["Defaults env_reset", f"Defaults !syslog, logfile={SUDO_LOG}, loglinelen=0", f"@includedir {rules}"]
    main.write_text("".join(f"{line}\n" for line in lines))
    main.chmod(0o440)
