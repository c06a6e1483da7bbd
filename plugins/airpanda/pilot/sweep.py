"""What a pilot that was killed left behind, removed by whoever outlived it: payloads, sandboxes, proxies.

A pilot that ends by itself leaves nothing to do. The notes it keeps for this hold no token.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from airpanda.core.errors import AirpandaError
from airpanda.pilot.config import PilotConfig

if TYPE_CHECKING:
    from airpanda.glexec.switchers import IdentitySwitcher

log = logging.getLogger(__name__)

NOTES = "sweep.json"
PROXY = "payload.proxy"
_GRACE_S = 10.0
_TRIES, _PAUSE_S = 3, 0.5


def begin(config: PilotConfig) -> None:
    """Make the pilot's scratch directory, and the notes for a sweep."""
    config.scratch.mkdir(mode=0o711, exist_ok=True)
    config.scratch.chmod(0o711)  # whatever the umask: payload accounts pass through to their own directories
    notes = config.workdir / NOTES
    with open(os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        json.dump(config.without_token(), file)


def end(config: PilotConfig) -> None:
    """Remove both; what is not empty stays for a sweep."""
    with contextlib.suppress(OSError):
        config.scratch.rmdir()
        (config.workdir / NOTES).unlink()


def sweep(config: PilotConfig, choose: Callable[[], IdentitySwitcher]) -> None:
    """End payloads and remove sandboxes of the killed pilot. What cannot be removed is logged and left."""
    end_processes(config.scratch)
    places = sorted(config.workdir.glob("job-*"))
    left = [_remove_all(outer, [place / PROXY for place in places], choose) for outer in _outer(config.scratch)]
    if all(left):
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
    end(config)


def remove_sandbox(switcher: IdentitySwitcher, sandbox: Path, proxy: Path) -> bool:
    """Remove it as its owner, with some patience: a launcher that was killed just now is no reason to leave it."""
    for attempt in range(_TRIES):
        try:
            switcher.remove(sandbox, proxy)
        except (AirpandaError, OSError) as error:
            log.log(logging.ERROR if attempt + 1 == _TRIES else logging.INFO, "%s is not removed: %s", sandbox, error)
            time.sleep(_PAUSE_S)
        else:
            return True
    return False


def _outer(scratch: Path) -> list[Path]:
    """The directories around sandboxes. A pilot killed in a bad moment has noted none of them anywhere."""
    return sorted(path for path in scratch.iterdir() if path.is_dir()) if scratch.is_dir() else []


def _remove_all(outer: Path, proxies: Sequence[Path], choose: Callable[[], IdentitySwitcher]) -> bool:
    """One such directory with what is in it; whose sandbox it is, the proxies that are left decide."""
    try:
        switcher = choose()
        outer.chmod(0o711)
        for inner in [path for path in outer.iterdir() if path.is_dir()]:
            if not any(remove_sandbox(switcher, inner, proxy) for proxy in proxies if proxy.exists()):
                log.error("the sandbox %s is left behind; the site must remove it", inner)
                return False
        shutil.rmtree(outer, ignore_errors=True)
    except (AirpandaError, OSError) as error:
        log.error("%s is left behind: %s", outer, error)
    return not outer.exists()


def end_processes(scratch: Path) -> None:
    """TERM, then KILL, to this account's processes that work below ``scratch``: launchers and contained payloads.

    A launcher passes the TERM on to its payload, which belongs to another account.
    """
    until = time.monotonic() + _GRACE_S
    number = signal.SIGTERM
    while True:
        found = _processes_in(scratch)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        if number is signal.SIGKILL and time.monotonic() > until + _GRACE_S:
            log.error("processes %s do not end", found)
            return
        if time.monotonic() > until:
            number = signal.SIGKILL
        time.sleep(0.2)


def _processes_in(scratch: Path) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # gone, or another account's
                if os.readlink(f"/proc/{name}/cwd").startswith(f"{scratch}/"):
                    found.append(int(name))
    return found
