"""Small commands in a running payload's sandbox, as its owner: only its owner can enter it."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from airpanda.core.errors import AirpandaError, IdentitySwitchError
from airpanda.pilot.limits import Scan

if TYPE_CHECKING:
    from airpanda.glexec.switchers import IdentitySwitcher

LIMIT_S = 120.0
_MAX_OUTPUT = 64 * 1024
_BALLAST_BYTES = 256 * 1024
# The switch gives the command a fresh copy of the proxy; it takes the place of the payload's own in one step.
_REPLACE = (
    'umask 077; bad=0; for old in "$HOME"/.x509up-????????; do\n'
    'if [ "$old" != "$X509_USER_PROXY" ] && [ -f "$old" ]; then\n'
    'cp "$X509_USER_PROXY" "$old.new" && mv -f "$old.new" "$old" || bad=1\n'
    'fi; done; rm -f "$X509_USER_PROXY"; exit $bad'
)
# Bytes on disk, number of files, time of the last change; what the switch itself writes is no sign of progress.
_SCAN = (
    'find "$HOME" -xdev -printf "%b %T@ %y %f\\n" 2>/dev/null | awk \'{ blocks += $1; n++ }\n'
    '$3 == "f" && $4 !~ /^[.](x509up-|airpanda-)/ && $2 > last { last = $2 }\n'
    'END { printf "%.0f %.0f %.3f\\n", blocks * 512, n, last }\''
)
# What the switch itself has put there is not the payload's.
_LIST = (
    'cd "$HOME" || exit 1; find . -xdev -mindepth 1 -maxdepth 4 ! -name ".x509up-*" ! -name ".airpanda-*" '
    '-printf "%M %u %12s %TY-%Tm-%Td %TH:%TM %P\\n" 2>&1 | head -n 1000'
)


class Ballast:
    """Room for one look into a sandbox that has filled the disk: a look writes, too, and tells whose fault it is."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"
        try:
            self._path.write_bytes(os.urandom(_BALLAST_BYTES))
        except OSError:  # what little room there is belongs to the payload's output
            with contextlib.suppress(OSError):
                self._path.unlink()

    def scan(self, look: Callable[[], Scan]) -> Scan:
        """What the look finds; one that fails is repeated once, with the room that was kept for it.

        Raises:
            AirpandaError, OSError: of the look.
        """
        try:
            return look()
        except (AirpandaError, OSError):
            if not self._path.exists():
                raise
            self._path.unlink()
            return look()


@dataclass(frozen=True)
class AsOwner:
    """Commands for one sandbox. ``folder`` is the pilot's own directory for their output."""

    switcher: IdentitySwitcher
    sandbox: Path
    folder: Path
    label: str

    def replace_proxy(self, proxy: Path) -> None:
        """Put a newer proxy where the payload looks for its own; the payload sees the old or the new, never half.

        Raises:
            IdentitySwitchError: it could not be; the payload keeps the old one.
        """
        self._run(_REPLACE, proxy)

    def scan(self, proxy: Path) -> Scan:
        """What lies in the sandbox.

        Raises:
            IdentitySwitchError: it could not be looked into.
        """
        text = self._run(_SCAN, proxy)
        try:
            size, files, newest = text.split()
            return Scan(int(size), int(files), float(newest))
        except ValueError:
            raise IdentitySwitchError(
                f"the sandbox was measured, but the answer cannot be read: {text[:200]!r}"
            ) from None

    def listing(self, proxy: Path) -> str:
        """The files in the sandbox, one a line, for a person to read; their names may hold anything.

        Raises:
            IdentitySwitchError: it could not be looked into.
        """
        return self._run(_LIST, proxy)

    def _run(self, script: str, proxy: Path) -> str:
        output = self.folder / f"tool-{secrets.token_hex(4)}"
        try:
            running = self.switcher.launch(
                ["/bin/sh", "-c", script],
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                sandbox=self.sandbox,
                proxy=proxy,
                stdout=output,
                stderr=output,
                label=self.label,
            )
            outcome = running.wait(LIMIT_S)
            if outcome is None:
                running.kill(0.0)
                raise IdentitySwitchError(f"a command in the sandbox took over {LIMIT_S:.0f} s")
            if outcome.launcher_lost:
                raise IdentitySwitchError(f"a command in the sandbox was lost: {outcome.launcher_lost}")
            with output.open("rb") as file:
                text = file.read(_MAX_OUTPUT).decode("utf-8", "replace")
            if outcome.exit_code != 0:
                raise IdentitySwitchError(f"a command in the sandbox ended with {outcome.exit_code}: {text[-300:]}")
            return text
        finally:
            output.unlink(missing_ok=True)
