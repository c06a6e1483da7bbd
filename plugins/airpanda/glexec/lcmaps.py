"""Mapping by the site's own LCMAPS, in a short-lived unprivileged process with a constant environment.

The process is a fork: starting an interpreter for it would take longer than the mapping.
"""

from __future__ import annotations

import _socket as socket
import contextlib
import json
import os
import pwd
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

from airpanda.core.errors import ConfigurationError, NotAuthorisedError
from airpanda.core.identity import Account
from airpanda.core.secret import Secret
from airpanda.glexec.config import LauncherConfig
from airpanda.glexec.contract import NOT_AUTHORISED
from airpanda.glexec.launcher.identity import become
from airpanda.glexec.launcher.kernel import close_others
from airpanda.glexec.lcmaps_process import Lcmaps
from airpanda.glexec.leases import LeaseOwners
from airpanda.glexec.mapping import Mapper, Mapping
from airpanda.glexec.trusted import check_trusted, read_trusted

_TIMEOUT_S = 20
_LIFE_S = 60
_MODULES = re.compile(r"^\s*path\s*=\s*\"?(/[^\s\"]+)", re.MULTILINE)
_FILES = re.compile(r"-(?:\w*mapfile|certdir|vomsdir|CAdir)\s+(/[^\s\"]+)")
_GRIDMAPDIRS = re.compile(r"-(?:grid|group)mapdir\s+(/[^\s\"]+)")
_LEASE = re.compile(r"[a-z0-9%][A-Za-z0-9%:_.-]{0,240}")
_MAX_ANSWER = 256 * 1024


class LcmapsMapper(Mapper):
    """The account that ``lcmaps.db`` gives; our own verification of the chain has passed before it is asked."""

    def __init__(self, config: LauncherConfig) -> None:
        self._config = config
        self._process: Optional[_Process] = None

    def begin(self) -> None:
        """Have a process load LCMAPS already while the caller's proxy is being verified.

        Raises:
            ConfigurationError: its configuration is missing or unsafe.
        """
        database = self._config.lcmaps_db
        if database is None:
            raise ConfigurationError("mapping = lcmaps needs lcmaps_db")
        self._check_files(read_trusted(database))
        user = self._user()
        self._process = _Process(Account(user.pw_name, user.pw_uid, (user.pw_gid,)), self._environment())

    def map(self, dn: str, fqans: Sequence[str], pem: Secret[bytes]) -> Mapping:
        if self._process is None:
            self.begin()
        assert self._process is not None
        answer = _understand(self._process.ask(pem))
        try:
            uid, gids, lease = int(answer["uid"]), tuple(map(int, answer["gids"])), answer["lease"]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError("LCMAPS gave an answer that cannot be read") from error
        try:
            entry = pwd.getpwuid(uid)
        except KeyError as error:
            raise NotAuthorisedError(f"LCMAPS maps to uid {uid}, which has no account here") from error
        groups = tuple(dict.fromkeys(gids))
        if lease is not None:
            self._claim(str(lease), dn)
        return Mapping(Account(entry.pw_name, uid, groups), entry.pw_dir, None if lease is None else str(lease))

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _check_files(self, text: str) -> None:
        """Rule 6 for what lcmaps.db names: plug-ins, mapfiles, certificates; a gridmapdir may be the mapping user's."""
        found = _MODULES.findall(text) + _FILES.findall(text)
        for path in dict.fromkeys(found):
            check_trusted(Path(path))
        for path in dict.fromkeys(_GRIDMAPDIRS.findall(text)):
            check_trusted(Path(path), owners=(0, self._user().pw_uid))

    def _claim(self, lease: str, dn: str) -> None:
        """Rule 5: LCMAPS' names of leases are not one-to-one."""
        directory = self._config.lease_dir
        if directory is None:
            raise ConfigurationError("LCMAPS has leased a pool account: lease_dir must be set, for the leases' owners")
        check_trusted(directory.parent)
        if not _LEASE.fullmatch(lease):
            raise ConfigurationError(f"LCMAPS gave a lease with the name {lease[:100]!r}")
        LeaseOwners(directory).claim(lease, dn)

    def _user(self) -> pwd.struct_passwd:
        try:
            return pwd.getpwnam(self._config.lcmaps_user)
        except KeyError as error:
            raise ConfigurationError(f"lcmaps_user: there is no account {self._config.lcmaps_user}") from error

    def _environment(self) -> dict[str, str]:
        """Constants of the site only. Nothing of a caller's environment steers LCMAPS.

        Without the SSL_CERT_* its plug-ins would load and trust the operating system's certificate authorities too,
        which are the web's, beside those of ``ca_dir``; reading them takes longer than all else in a mapping.
        """
        return {
            "PATH": "/usr/bin:/bin",
            "LCMAPS_DB_FILE": str(self._config.lcmaps_db),
            "LCMAPS_POLICY_NAME": self._config.lcmaps_policy,
            "LCMAPS_DEBUG_LEVEL": "3",
            "SSL_CERT_FILE": os.devnull,
            "SSL_CERT_DIR": "/nonexistent",
            "X509_CERT_DIR": str(self._config.ca_dir),
            "X509_VOMS_DIR": str(self._config.voms_dir),
        }


class _Process:
    """LCMAPS under an account without rights, forked from this process."""

    def __init__(self, account: Account, environ: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            _map_and_exit(theirs, account, environ)
        theirs.close()

    def ask(self, pem: Secret[bytes]) -> bytes:
        """Its whole answer; to be called once.

        Raises:
            ConfigurationError: none comes in time, or one without end.
        """
        self._socket.settimeout(_TIMEOUT_S)
        deadline = time.monotonic() + _TIMEOUT_S
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended; its answer says why
                self._socket.sendall(pem.reveal())
                self._socket.shutdown(socket.SHUT_WR)
            return _read_all(self._socket, deadline)
        except socket.timeout as error:
            raise ConfigurationError(f"LCMAPS did not answer within {_TIMEOUT_S} s") from error

    def close(self) -> None:
        """It has said all it will, or nothing in time."""
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _map_and_exit(asked: socket.socket, account: Account, environ: dict[str, str]) -> NoReturn:
    """Never returns. Loads LCMAPS, waits for the PEM, answers with a code of three digits and JSON."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(_LIFE_S)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)  # what a plug-in prints is for the site's log
        close_others(asked.fileno())
        os.chdir("/")
        os.environ.clear()
        os.environ.update(environ)
        become(account)
        lcmaps = Lcmaps()
        pem = b"".join(iter(lambda: asked.recv(65536), b""))
        if pem:
            code, answer = lcmaps.ask(pem)
            asked.sendall(b"%03d" % code + json.dumps(answer).encode("ascii"))
    except (OSError, RuntimeError) as error:
        print(f"airpanda-glexec: LCMAPS: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def _read_all(answering: socket.socket, deadline: float) -> bytes:
    data = b""
    while len(data) <= _MAX_ANSWER:
        answering.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            part = answering.recv(_MAX_ANSWER)
        except ConnectionResetError:  # it ended with what it was asked unread
            part = b""
        if not part:
            return data
        data += part
    raise ConfigurationError("LCMAPS gave an answer that is too long")


def _understand(data: bytes) -> dict[str, Any]:
    code, text = data[:3], data[3:]
    if code == b"%d" % NOT_AUTHORISED:
        raise NotAuthorisedError("LCMAPS does not map this proxy; its own log says why")
    if code != b"000":
        raise ConfigurationError("LCMAPS cannot be used or has crashed; its own log says why")
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ConfigurationError("LCMAPS gave an answer that cannot be read") from error
    return answer
