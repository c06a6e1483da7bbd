"""The demonstration's directory: whose it is, what lies where, and that only one demonstration uses it.

Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from airpanda_demo.errors import DemoError

DEFAULT = "/var/tmp/airpanda-demo"  # noqa: S108 - made with mkdir, and refused when it is another's
VARIABLE = "AIRPANDA_DEMO_DIR"
NEEDED_BYTES = {"first": 2_500_000_000, "again": 500_000_000}
_MARKER = ".airpanda-demo"
_MARKER_TEXT = "A demonstration of airpanda. `make demo-clean` removes this directory.\n"
# Paths go into airflow.cfg, where % and $ have meanings, and into TOML.
_UNUSABLE = re.compile(r"[%$\"'\\\x00-\x1f\x7f]")


class Place:
    """Paths below one directory. Nothing is read or written before ``claim``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / "venv"
        self.software = root / "software"
        self.code = root / "code"
        self.pki = root / "pki"
        self.postgres = root / "pg"
        self.myproxy = root / "myproxy"
        self.airflow = root / "airflow"
        self.files = root / "files"
        self.include = root / "include"
        self.node = root / "node"
        self.pilots = root / "pilots"
        self.logs = root / "logs"
        self.results = root / "results"
        self.report = root / "report.json"
        self.ready = root / "ready.json"
        self._lock: int | None = None

    @property
    def lock(self) -> int:
        """The descriptor that keeps others out; give it to the child that goes on with the demonstration."""
        if self._lock is None:
            raise DemoError(f"{self.root} was not claimed")
        return self._lock

    def adopt(self, descriptor: int) -> None:
        """Take over a claim from the parent process."""
        self._lock = descriptor
        os.set_inheritable(descriptor, False)

    def claim(self) -> None:
        """Make the directory if need be, see that it is ours, and lock it until this process and its heirs end.

        Raises:
            DemoError: another's, not a demonstration's, in use, or not writable.
        """
        try:
            self._claim()
        except PermissionError as error:
            raise DemoError(
                f"{error.filename} cannot be written by this account; set {VARIABLE} to a directory of your own"
            ) from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DemoError(f"{self.root.parent} is no directory; set {VARIABLE} to a place that exists") from error

    def _claim(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.root.mkdir(mode=0o711)
            self.root.chmod(0o711)
            (self.root / _MARKER).write_text(_MARKER_TEXT)
        self.check_ours()
        if os.geteuid() == 0:
            self._check_reachable()
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            self._lock = None
            raise DemoError(
                f"a demonstration already runs in {self.root} (process {holder}): stop it with Ctrl-C where it runs, "
                f"or set {VARIABLE} to another directory"
            ) from None
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def check_ours(self) -> None:
        """Raise DemoError unless this is a demonstration's directory and belongs to this account alone."""
        status = os.lstat(self.root)
        if not stat.S_ISDIR(status.st_mode):
            raise DemoError(f"{self.root} is no directory; remove it, or set {VARIABLE} to another place")
        if status.st_uid != os.geteuid():
            raise DemoError(
                f"{self.root} belongs to another account (uid {status.st_uid}); "
                f"set {VARIABLE} to a directory of your own"
            )
        if status.st_mode & 0o022:
            raise DemoError(f"{self.root} can be written by others; chmod 711 it, or set {VARIABLE} to another place")
        if not (self.root / _MARKER).exists():
            if any(self.root.iterdir()):
                raise DemoError(
                    f"{self.root} holds something else than a demonstration; set {VARIABLE} to a new or empty directory"
                )
            (self.root / _MARKER).write_text(_MARKER_TEXT)

    def _check_reachable(self) -> None:
        """As root, payloads run under other accounts, which must be able to walk to their software."""
        for parent in self.root.parents:
            if not os.stat(parent).st_mode & stat.S_IXOTH:
                raise DemoError(
                    f"other accounts cannot pass {parent}, and as root the demonstration's payloads run under other "
                    f"accounts; set {VARIABLE} to a place such as {DEFAULT}"
                )

    def check_space(self) -> None:
        """Raise DemoError when the file system is too full."""
        needed = NEEDED_BYTES["again" if self.software.exists() and self.venv.exists() else "first"]
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise DemoError(
                f"{self.root} has {free / 1e6:.0f} MB of free disk space and {needed / 1e6:.0f} MB are needed; "
                f"make room, or set {VARIABLE} to a directory on another file system"
            )

    def empty(self) -> None:
        """Remove what an earlier demonstration made, but not the installed software."""
        for path in (self.pki, self.postgres, self.myproxy, self.airflow, self.files, self.include, self.node):
            _remove(path)
        for path in (self.code, self.pilots, self.logs, self.results):
            _remove(path)
        for path in (self.report, self.ready):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the whole directory; it must be claimed."""
        self.check_ours()
        keep = {_MARKER, "lock"}  # last: an interrupted removal still shows a demonstration's directory
        for path in sorted(self.root.iterdir(), key=lambda path: path.name in keep):
            _remove(path)
        self.root.rmdir()


def place_for(environment: Mapping[str, str], checkout: Path) -> Place:
    """Where the demonstration shall live.

    Raises:
        DemoError: the path cannot be used, or lies in the checkout.
    """
    given = environment.get(VARIABLE, "")
    root = Path(os.path.abspath(given or DEFAULT))
    for path, what in ((root, f"the directory {root}"), (checkout, f"the checkout {checkout}")):
        if bad := _UNUSABLE.search(str(path)):
            raise DemoError(
                f"{what} has {bad[0]!r} in its name, which configuration files cannot hold; use another path"
            )
    if root == checkout or checkout in root.parents or root in checkout.parents:
        raise DemoError(f"{VARIABLE} = {root} must lie outside of the checkout {checkout}")
    return Place(root)


def _remove(path: Path) -> None:
    for patience_s in (0.0, 0.2, 1.0):
        time.sleep(patience_s)
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError:  # a log that is still being closed; the last try tells
            if patience_s == 1.0:
                raise
        else:
            return
