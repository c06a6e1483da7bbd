"""Moving an owner's files: rounds of a carrier that runs as the owner, through the same switch as the payload."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import random
import secrets
import signal
import sys
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from airpanda.core.errors import AirpandaError
from airpanda.pilot import carrier
from airpanda.pilot.carrier import limit
from airpanda.pilot.errors import JobFault
from airpanda.pilot.transfers.plan import Transfer
from airpanda.pilot.transfers.verdict import Outcome, fault_of, is_worth_repeating, pause_s, read_outcomes

if TYPE_CHECKING:
    from airpanda.glexec.switchers import IdentitySwitcher, RunningPayload

log = logging.getLogger(__name__)

STEP_S = 0.1
KILL_GRACE_S = 5.0
_MAX_SAID = 16 * 1024 * 1024
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = "import sys\nfrom airpanda.pilot.carrier.main import main\nsys.exit(main(sys.argv[1:]))\n"
# The pilot's own interpreter, where the owner may use it; else the node's.
_START = (
    'for python in "$3" /usr/bin/python3; do\n'
    'if [ -x "$python" ]; then exec "$python" -I -S -B "$1" "$2" "$1"; fi\n'
    'done; echo "no Python that the owner may use: $3, /usr/bin/python3" >&2; exit 127'
)


@dataclass(frozen=True)
class Moved:
    """What has been moved, with what it was found to be."""

    transfer: Transfer
    size: int
    adler32: str
    sha256: str

    def to_wire(self) -> dict[str, Any]:
        """The message ``StoredFile``."""
        what = {"size": self.size, "adler32": self.adler32, "sha256": self.sha256}
        return {"lfn": self.transfer.lfn, "url": self.transfer.url, **what}


@dataclass(frozen=True)
class Mover:
    """Moves files of one sandbox. ``folder`` is the pilot's own directory.

    ``ca_dir``: whom to trust; ``path``: where the node's programs lie.
    ``go_on`` is called all along, several times a second: it raises when nothing more is to be moved.
    """

    switcher: IdentitySwitcher
    sandbox: Path
    proxy: Path
    folder: Path
    label: str
    ca_dir: str
    path: str
    go_on: Callable[[], None]

    def move(self, transfers: Sequence[Transfer], *, max_bytes: int) -> tuple[list[Moved], list[JobFault]]:
        """Move them all, as often as it is worth trying; what could not be moved comes back as faults.

        Raises:
            AirpandaError: from ``go_on``.
            IdentitySwitchError: the switch has failed.
        """
        tries: dict[str, list[Outcome]] = {each.lfn: [] for each in transfers}
        moved: list[Moved] = []
        left = list(transfers)
        while left:
            self.go_on()  # before the carrier starts: even a moment of it changes what lies at the storage
            began = time.monotonic()
            said = self._round(left, max_bytes - sum(each.size for each in moved))
            log.info("%s: %d transfers in %.1f s", self.label, len(left), time.monotonic() - began)
            for each in left:
                tries[each.lfn].append(said[each.lfn])
                log.info("%s %s %s: %s", each.direction, each.lfn, each.shown, said[each.lfn])
                if not said[each.lfn].why:
                    moved.append(Moved(each, said[each.lfn].size, said[each.lfn].adler32, said[each.lfn].sha256))
            left = [each for each in left if said[each.lfn].why and is_worth_repeating(tries[each.lfn])]
            if left:
                self._pause(max(pause_s(tries[each.lfn], random.random()) for each in left))  # noqa: S311 - no secret
        done = {each.transfer.lfn for each in moved}
        return moved, [fault_of(each, tries[each.lfn]) for each in transfers if each.lfn not in done]

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.go_on()
            time.sleep(STEP_S)

    def _round(self, transfers: Sequence[Transfer], max_bytes: int) -> dict[str, Outcome]:
        """Each of them once."""
        key = secrets.token_hex(4)
        names = {"program": f".airpanda-carrier-{key}", "plan": f".airpanda-plan-{key}"}
        said, complaint = self.folder / f"carrier-{key}.out", self.folder / f"carrier-{key}.err"
        files = {names["program"]: self.folder / names["program"], names["plan"]: self.folder / names["plan"]}
        plan = {"ca_dir": self.ca_dir, "max_bytes": max_bytes, "transfers": [each.to_wire() for each in transfers]}
        try:
            files[names["program"]].write_bytes(program())
            files[names["plan"]].write_text(json.dumps(plan), encoding="utf-8")
            self.switcher.put(self.sandbox, self.proxy, files)
            limit_s = KILL_GRACE_S + sum(limit.limit_s(each.size) for each in transfers)
            code = self._run([names["program"], names["plan"]], said, complaint, limit_s)
            ended = f"the carrier ended with {code}: {_tail(complaint)}"
            return read_outcomes(_read(said), transfers, ended)
        finally:
            for path in (*files.values(), said, complaint):
                path.unlink(missing_ok=True)

    def _run(self, files: Iterable[str], said: Path, complaint: Path, limit_s: float) -> int:
        """The exit code. A carrier keeps its own time and says little; one that does not is ended."""
        until = time.monotonic() + limit_s
        running = self.switcher.launch(
            ["/bin/sh", "-c", _START, "carrier", *files, os.path.realpath(sys.executable)],
            env={"PATH": self.path, "LC_ALL": "C.UTF-8"},
            sandbox=self.sandbox,
            proxy=self.proxy,
            stdout=said,
            stderr=complaint,
            label=self.label,
        )
        while True:
            outcome = running.wait(STEP_S)
            if outcome is not None:
                return outcome.exit_code
            try:
                self.go_on()
                if time.monotonic() > until or max(_size(said), _size(complaint)) > _MAX_SAID:
                    return self._end(running)
            except AirpandaError:
                self._end(running)
                raise

    def _end(self, running: RunningPayload) -> int:
        running.kill(KILL_GRACE_S)
        outcome = running.wait(KILL_GRACE_S)
        return 128 + signal.SIGKILL if outcome is None else outcome.exit_code


@functools.lru_cache(maxsize=1)
def program() -> bytes:
    """The carrier in one file that Python can run."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("airpanda/__init__.py", "airpanda/pilot/__init__.py"):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), "")
        for path in sorted(Path(carrier.__path__[0]).glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"airpanda/pilot/carrier/{path.name}", _EPOCH), path.read_bytes())
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _MAIN)
    return buffer.getvalue()


def _read(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return file.read(_MAX_SAID).decode("utf-8", "replace")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path) -> str:
    return " ".join(_read(path)[-300:].split()) or "no reason given"
