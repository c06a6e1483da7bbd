"""Who may have a process of the launcher's: asked in the daemon itself, so that nobody else can use up its slots."""

from __future__ import annotations

import array
import socket
import struct
import time
from pathlib import Path
from typing import Optional

from airpanda.core.clock import utcnow
from airpanda.core.errors import AirpandaError, IdentitySwitchError
from airpanda.glexec.config import LauncherConfig, read_config
from airpanda.glexec.launcher.audit import Audit, Value
from airpanda.glexec.launcher.identity import Caller
from airpanda.glexec.launcher.refusal import internal_error
from airpanda.glexec.launcher.request import caller_of, check_caller

_SO_PEERGROUPS = 59
_MAX_GROUPS_BYTES = 1024  # the most that Python reads; a caller with over 256 groups is refused
_UCRED = struct.Struct("3i")
_REMEMBERED_S = 1.0
_MAX_REMEMBERED = 1024

Ids = tuple[int, int, tuple[int, ...]]
"""uid, gid, supplementary groups."""


def peer_of(connection: socket.socket) -> Ids:
    """Who is at the other end, as the kernel says."""
    _, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = array.array("i", connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES))
    return uid, gid, tuple(groups)


def pid_of(connection: socket.socket) -> int:
    """The process that has connected; 0 where it is in a PID namespace that cannot be seen from here."""
    pid, _, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)


class Admission:
    """The white list and the limits of simultaneous runs.

    An answer is remembered for a second, so that nobody can keep the daemon busy with account databases or fill the
    log: of a refused caller there is at most one record a second. Who is let in is checked again, for each run.
    """

    def __init__(self, config_path: Path, config: LauncherConfig) -> None:
        self._config_path = config_path
        self._max_runs = config.max_runs
        self._max_of_one = config.max_runs_per_caller or _share(config)
        self._answers: dict[Ids, tuple[float, Optional[IdentitySwitchError]]] = {}
        self._runs: dict[int, int] = {}

    def refusal_of(self, peer: Ids) -> Optional[IdentitySwitchError]:
        """Why this peer gets no process now, or None."""
        refused = self._remembered(peer)
        if refused is not None:
            return refused
        if len(self._runs) >= self._max_runs:
            return internal_error(f"the launcher already serves {self._max_runs} runs")
        if list(self._runs.values()).count(peer[0]) >= self._max_of_one:
            return internal_error(f"the launcher already serves {self._max_of_one} runs of this caller")
        return None

    def begin(self, pid: int, peer: Ids) -> None:
        """A process serves this peer."""
        self._runs[pid] = peer[0]

    def end(self, pid: int) -> None:
        """It has ended."""
        self._runs.pop(pid, None)

    def pids(self) -> list[int]:
        """The processes that serve somebody now."""
        return list(self._runs)

    def _remembered(self, peer: Ids) -> Optional[IdentitySwitchError]:
        now = time.monotonic()
        until, refused = self._answers.get(peer, (0.0, None))
        if now >= until:
            if len(self._answers) >= _MAX_REMEMBERED:
                self._answers.clear()
            refused = self._ask(peer)
            self._answers[peer] = (now + _REMEMBERED_S, refused)
        return refused

    def _ask(self, peer: Ids) -> Optional[IdentitySwitchError]:
        try:
            config = read_config(self._config_path)
        except AirpandaError:
            return None  # whoever is served now is told why nothing works
        caller = Caller(*peer, name=str(peer[0]), home="")
        try:
            caller = caller_of(*peer)
            check_caller(caller, config)
        except IdentitySwitchError as error:
            _record(config, caller, error)
            return error
        return None


def _share(config: LauncherConfig) -> int:
    """Half of all, so that one caller cannot keep out the others; all, where there are no others."""
    alone = len(config.callers) == 1 and not config.callers[0].startswith("%") and not config.allow_root
    return config.max_runs if alone else (config.max_runs + 1) // 2


def _record(config: LauncherConfig, caller: Caller, error: IdentitySwitchError) -> None:
    try:
        audit = Audit(config.log_file, to_syslog=config.syslog)
    except AirpandaError:
        return  # no log, no run, whoever asks
    try:
        asked: dict[str, Value] = {"id": "", "launcher": "socket", "caller": caller.name, "caller_uid": caller.uid}
        outcome: dict[str, Value] = {"identity_switched": False, "rc": error.exit_code, "reason": str(error)}
        audit.write({**asked, "command": "", **outcome}, now=utcnow())
    finally:
        audit.close()
