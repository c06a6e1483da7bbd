"""The two virtual environments: one for the services, one with the software of the worker node.

An environment counts only with its stamp, which is written last and names what was to be installed: one that was
interrupted, or whose requirements have changed, is removed and made anew. Standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from airpanda_demo.errors import DemoError
from airpanda_demo.processes import guarded, tail
from airpanda_demo.progress import Progress

_PIP_MINIMUM = (22, 3)  # the first with --python
_REPORT_EVERY_S = 5.0
_UNREACHABLE = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|NameResolution|Temporary failure in name"
    r"|Connection (?:refused|reset)|No matching distribution found|Could not fetch URL|Network is unreachable"
    r"|RemoteDisconnected|Max retries exceeded|40[13] (?:Client Error|Forbidden|Unauthorized)"
)


@dataclass(frozen=True)
class Environment:
    """One virtual environment and what goes into it."""

    what: str
    directory: Path
    requirements: tuple[Path, ...]
    constraints: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def _stamp(self) -> Path:
        return self.directory / ".complete"

    def digest(self) -> str:
        """Changes with the requirements, the interpreter and the place."""
        about = [sys.version, os.path.realpath(sys.executable), str(self.directory)]
        texts = [path.read_text() for path in (*self.requirements, self.constraints)]
        return hashlib.sha256("\0".join(about + texts).encode()).hexdigest()

    def is_complete(self) -> bool:
        """Whether it is there as it should be."""
        try:
            return self._stamp.read_text() == self.digest() and self.python.exists()
        except FileNotFoundError:
            return False

    def mark_complete(self) -> None:
        self._stamp.write_text(self.digest())


def install(environments: Sequence[Environment], *, logs: Path, progress: Progress) -> None:
    """Make the environments that are not complete, side by side.

    Raises:
        DemoError: no pip, no index, no space; what was begun is removed.
    """
    missing = [environment for environment in environments if not environment.is_complete()]
    if not missing:
        return
    check_pip()
    running = [(environment, _begin(environment, logs)) for environment in missing]
    try:
        _follow(running, logs, progress)
    except BaseException:
        for environment, process in running:
            process.terminate()
            process.wait()
            shutil.rmtree(environment.directory, ignore_errors=True)
        raise
    for environment in missing:
        environment.mark_complete()


def check_pip() -> None:
    """Raise DemoError unless this interpreter has a pip that can install into another environment."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    found = re.match(r"pip (\d+)\.(\d+)", asked.stdout)
    if found is None:
        raise DemoError(f"{sys.executable} has no pip; install it (Debian: apt-get install python3-pip) and run again")
    if (int(found[1]), int(found[2])) < _PIP_MINIMUM:
        raise DemoError(
            f"{sys.executable} has pip {found[1]}.{found[2]}, 22.3 or newer is needed: upgrade it, run again"
        )
    if importlib.util.find_spec("venv") is None:
        raise DemoError(f"{sys.executable} has no module venv; install it (Debian: apt-get install python3-venv)")


def _begin(environment: Environment, logs: Path) -> subprocess.Popen[bytes]:
    shutil.rmtree(environment.directory, ignore_errors=True)
    if environment.directory.exists():
        raise DemoError(f"{environment.directory} cannot be removed; remove it and run again")
    # Debian keeps ensurepip in another package, hence without pip inside: the outer pip installs from outside.
    command = [sys.executable, "-m", "venv", "--without-pip", str(environment.directory)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if made.returncode != 0:
        raise DemoError(f"{environment.directory} cannot be made: {(made.stderr or made.stdout).strip()[-500:]}")
    with open(_log(environment, logs), "wb") as log:
        return subprocess.Popen(
            guarded([sys.executable, "-m", "pip", "--python", str(environment.python), "install", "--no-input"])
            + ["--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--only-binary=:all:"]
            + [f"--requirement={path}" for path in environment.requirements]
            + [f"--constraint={environment.constraints}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**_without_python_path(), "PIP_USER": "0"},
            start_new_session=True,
        )


def _follow(running: Sequence[tuple[Environment, subprocess.Popen[bytes]]], logs: Path, progress: Progress) -> None:
    report_at = time.monotonic() + _REPORT_EVERY_S
    waiting = list(running)
    while waiting:
        time.sleep(0.2)
        for pair in list(waiting):
            environment, process = pair
            if process.poll() is None:
                continue
            if process.returncode != 0:
                raise DemoError(explain(_log(environment, logs)))
            waiting.remove(pair)
            progress.say(f"installed {environment.what}")
        if waiting and time.monotonic() > report_at:
            report_at += _REPORT_EVERY_S
            for environment, _ in waiting:
                progress.say(f"installing {environment.what}: {_last_step(_log(environment, logs))}")


def _last_step(log: Path) -> str:
    """pip's last step in a few words."""
    text = log.read_text(errors="replace")
    if "Installing collected packages" in text:
        return "unpacking and compiling"
    names = re.findall(r"^Collecting ([A-Za-z0-9._-]+)", text, re.MULTILINE)
    return f"package {len(names)}, {names[-1]}" if names else "asking the package index"


def explain(log: Path) -> str:
    """A sentence about a failed pip run."""
    text = log.read_text(errors="replace")
    errors = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    said = errors[0][:300] if errors else "no reason"
    if "No space left on device" in text:
        return f"no disk space is left for the packages in {log.parent.parent}; make room and run again"
    if _UNREACHABLE.search(text):
        return (
            f"the package index cannot be reached or lacks a package (pip says: {said}); check the network, "
            "HTTPS_PROXY and pip's index (PIP_INDEX_URL, `python3 -m pip config list`), then run the same again"
        )
    return f"pip failed ({said}); the end of {log}:\n{tail(log)}"


def _log(environment: Environment, logs: Path) -> Path:
    return logs / f"install-{environment.directory.name}.log"


def _without_python_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
