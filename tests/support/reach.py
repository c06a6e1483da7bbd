"""A payload that reaches for everything it must not have. Runs on the worker node as the payload owner's account.

``targets.json`` beside it says what to try: lists ``paths``, ``sockets``, ``urls``, ``writable`` and ``commands``.
Writes ``reach.json``: ``{"reached": {what: how}, "tried": n, "uid": its own}``. It uses the standard library of the
node's Python only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

Attempt = Callable[[], object]


def main() -> None:
    targets = json.loads(Path("targets.json").read_text())
    attempts: dict[str, Attempt] = {}
    for path in targets["paths"]:
        attempts[f"read {path}"] = lambda path=path: look(path)  # type: ignore[misc]
    for path in targets["sockets"]:
        attempts[f"connect {path}"] = lambda path=path: connect(path)  # type: ignore[misc]
    for path in targets["writable"]:
        attempts[f"write {path}"] = lambda path=path: write(path)  # type: ignore[misc]
    for url in targets["urls"]:
        attempts[f"ask {url}"] = lambda url=url: ask(url)  # type: ignore[misc]
    for argv in targets["commands"]:
        attempts[f"run {' '.join(argv)}"] = lambda argv=argv: run(argv)  # type: ignore[misc]
    for pid in strangers():
        for name in ("environ", "fd", "cwd", "root", "mem", "maps"):
            attempts[f"look at /proc/{pid}/{name}"] = lambda pid=pid, name=name: look(f"/proc/{pid}/{name}")  # type: ignore[misc]
        attempts[f"signal {pid}"] = lambda pid=pid: os.kill(pid, signal.SIGCONT)  # type: ignore[misc]
    attempts["become root"] = lambda: os.setresuid(0, 0, 0)
    attempts["become another group"] = lambda: os.setgroups([0])
    attempts["mount"] = mount
    reached = {}
    for what, attempt in attempts.items():
        try:
            reached[what] = repr(attempt())[:200]
        except (OSError, urllib.error.URLError):
            continue
    Path("reach.json").write_text(json.dumps({"reached": reached, "tried": len(attempts), "uid": os.getuid()}))


def look(path: str) -> object:
    """List, resolve or read one byte: any of it is too much."""
    if os.path.isdir(path):
        return sorted(os.listdir(path))[:5] or refuse()
    if os.path.islink(path):
        return os.readlink(path)
    with open(path, "rb") as file:
        return file.read(1) or refuse()


def refuse() -> object:
    raise FileNotFoundError("nothing there to see")


def connect(path: str) -> object:
    with socket.socket(socket.AF_UNIX) as there:
        there.settimeout(3)
        there.connect(path)
        return "connected"


def write(path: str) -> object:
    with open(os.path.join(path, "airpanda-reach"), "x"):
        return "created"


def ask(url: str) -> object:
    """An HTTP answer below 400 without a credential is too much."""
    context = ssl._create_unverified_context()
    with urllib.request.urlopen(url, timeout=30, context=context) as answer:
        return answer.status


def run(argv: list[str]) -> object:
    """A program that succeeds, with this payload's own proxy as the launcher's credential, is too much."""
    settings = {**os.environ, "GLEXEC_CLIENT_CERT": os.environ["X509_USER_PROXY"]}
    done = subprocess.run(argv, env=settings, capture_output=True, timeout=30)
    if done.returncode != 0:
        raise PermissionError(argv[0], done.returncode)
    return done.stdout[:100]


def strangers() -> list[int]:
    """Processes of other accounts, and of this one outside the payload's own tree, as far as they are visible."""
    own = {os.getpid(), os.getppid(), 1}
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in own]


def mount() -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    return "mounted"


if __name__ == "__main__":
    main()
