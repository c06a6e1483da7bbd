"""What a pilot may expect of any way of running a payload as its owner: values and two ports, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional, Protocol

from airpanda.core.identity import Account
from airpanda.core.records import dataclass


@dataclass(frozen=True)
class Usage:
    """What a running payload has used so far, with all its processes, as far as it can be seen.

    ``read_bytes`` and ``written_bytes`` went through system calls, whether a disk was touched or not; 0 where nobody
    may look (a launcher that is not ours). ``rss_kib`` counts pages that processes share for each of them,
    ``largest_kib`` is the resident memory of the largest process alone. ``pss_kib`` counts shared pages once, at the
    monotonic time ``pss_at``: 0 where nobody has looked yet, None where nobody may.
    """

    cpu_s: float
    rss_kib: int
    processes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    largest_kib: int = 0
    pss_kib: Optional[int] = None
    pss_at: Optional[float] = None


@dataclass(frozen=True)
class ProcessSeen:
    """One process of a payload, seen from outside. ``state`` is the kernel's letter; ``command`` may hold anything."""

    pid: int
    parent: int
    state: str
    cpu_s: float
    rss_kib: int
    command: str


@dataclass(frozen=True)
class LaunchRecord:
    """Whose payload it is and what gave the account, in the launcher's own words; empty where it says nothing.

    ``launcher`` is socket, sudo or root; glexec where it is not ours; contained or uncontained where there is none.
    """

    launcher: str
    dn: str = ""
    fqans: tuple[str, ...] = ()
    issuer: str = ""
    serial: str = ""
    fingerprint: str = ""
    lease: str = ""
    mapping: str = ""


@dataclass(frozen=True)
class PayloadOutcome:
    """How a payload ended. ``exit_code`` is a shell's (128 + n for death by signal n); ``signal`` is that n.

    ``max_rss_kib`` is that of its largest process.
    """

    exit_code: int
    signal: Optional[int]
    wall_s: float
    cpu_s: float
    max_rss_kib: int
    account: Account
    identity_switched: bool
    launcher_lost: str = ""
    """Why nobody saw the payload end, where its launcher was killed or failed; ``exit_code`` says nothing then."""


class RunningPayload(Protocol):
    """A payload that has started."""

    account: Account
    record: LaunchRecord
    identity_proven: bool
    """Whether the account was read from outside of the payload, never by asking it."""

    def wait(self, timeout_s: float) -> Optional[PayloadOutcome]:
        """The outcome, or None when it still runs after this time. A repeat gives the same outcome.

        Raises:
            IdentitySwitchError: it turns out that the command was never reached.
        """

    def kill(self, grace_s: float) -> None:
        """SIGTERM, and after the grace SIGKILL to the whole tree. Returns when nothing of it is left."""

    def usage(self) -> Usage:
        """What the whole tree uses by now. Costs a look at every process of the machine."""

    def processes(self) -> list[ProcessSeen]:
        """The processes of the tree that can be seen now, in the order of their births as far as that is known."""


class IdentitySwitcher(Protocol):
    """A way to run things as the owner of a proxy. Holds no process.

    Every method raises IdentitySwitchError when the switch does not work: nothing has run then, and nothing is to
    be run in another way. ``proxy`` is a file of this process's account with mode 0600.
    """

    kind: str
    switches: bool
    contains: bool
    """Whether anything keeps a payload from the pilot's own files and processes: another account, or bubblewrap."""

    def preflight(self, proxy: Path) -> Account:
        """The account that the proxy is mapped to, by running ``id`` through the switch."""

    def make_sandbox(self, parent: Path, proxy: Path) -> Path:
        """A new directory below ``parent`` that only the target can enter."""

    def put(self, sandbox: Path, proxy: Path, files: Mapping[str, Path]) -> None:
        """Copy files into the sandbox, under plain names, as the target's own."""

    def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        sandbox: Path,
        proxy: Path,
        stdout: Path,
        stderr: Path,
        label: str,
    ) -> RunningPayload:
        """Start the payload in its sandbox with a proxy of its own; argv goes on verbatim, without a shell.

        Nothing of the owner's runs before its account was looked at, where there is a switch.
        """

    def get(self, sandbox: Path, proxy: Path, names: Sequence[str], into: Path, *, max_bytes: int) -> dict[str, Path]:
        """Copy regular files out of the sandbox; what is missing or no regular file is not in the result.

        Raises:
            RequestError: together they are over ``max_bytes``.
        """

    def remove(self, sandbox: Path, proxy: Path) -> None:
        """Remove the sandbox and all in it, as its owner. A repeat is no error."""
