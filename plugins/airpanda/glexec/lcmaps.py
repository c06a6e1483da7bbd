"""Mapping by the site's own LCMAPS, in a short-lived unprivileged process with a constant environment."""

from __future__ import annotations

import json
import pwd
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airpanda.core.errors import ConfigurationError, NotAuthorisedError
from airpanda.core.identity import Account
from airpanda.core.secret import Secret
from airpanda.glexec.config import LauncherConfig
from airpanda.glexec.contract import INTERNAL_ERROR
from airpanda.glexec.leases import LeaseOwners
from airpanda.glexec.mapping import Mapping
from airpanda.glexec.trusted import check_trusted, read_trusted

_TIMEOUT_S = 20
_MODULES = re.compile(r"^\s*path\s*=\s*\"?(/[^\s\"]+)", re.MULTILINE)
_FILES = re.compile(r"-(?:\w*mapfile|certdir|vomsdir|CAdir)\s+(/[^\s\"]+)")
_GRIDMAPDIRS = re.compile(r"-(?:grid|group)mapdir\s+(/[^\s\"]+)")
_LEASE = re.compile(r"[a-z0-9%][A-Za-z0-9%:_.-]{0,240}")
_PROGRAM = Path(__file__).with_name("lcmaps_process.py")


class LcmapsMapper:
    """The account that ``lcmaps.db`` gives; our own verification of the chain has passed before."""

    def __init__(self, config: LauncherConfig) -> None:
        self._config = config

    def map(self, dn: str, fqans: Sequence[str], pem: Secret[bytes]) -> Mapping:
        database = self._config.lcmaps_db
        if database is None:
            raise ConfigurationError("mapping = lcmaps needs lcmaps_db")
        self._check_files(read_trusted(database))
        answer = self._ask(pem)
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

    def _ask(self, pem: Secret[bytes]) -> dict[str, Any]:
        try:
            user = self._user()
            done = subprocess.run(
                [sys.executable, "-IS", str(_PROGRAM)],
                input=pem.reveal(),
                capture_output=True,
                timeout=_TIMEOUT_S,
                env=self._environment(),
                cwd="/",
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
            )
        except OSError as error:
            raise ConfigurationError(f"LCMAPS cannot be asked as {self._config.lcmaps_user}: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(f"LCMAPS did not answer within {_TIMEOUT_S} s") from error
        if done.returncode == 0:
            answer: dict[str, Any] = json.loads(done.stdout)
            return answer
        if done.returncode == INTERNAL_ERROR or done.returncode < 0:
            raise ConfigurationError(f"LCMAPS failed with {done.returncode}; its own log says why")
        raise NotAuthorisedError("LCMAPS does not map this proxy; its own log says why")

    def _environment(self) -> dict[str, str]:
        """Constants of the site only. Nothing of a caller's environment steers LCMAPS."""
        return {
            "PATH": "/usr/bin:/bin",
            "LCMAPS_DB_FILE": str(self._config.lcmaps_db),
            "LCMAPS_POLICY_NAME": self._config.lcmaps_policy,
            "LCMAPS_DEBUG_LEVEL": "3",
            "X509_CERT_DIR": str(self._config.ca_dir),
            "X509_VOMS_DIR": str(self._config.voms_dir),
        }
