"""The launcher started by one narrow sudo rule, or by root itself: the same rules without a daemon.

It is a new process for every step of every job, so what takes long to import is imported when ``lean`` allows it.

Source: sudo(8) for SUDO_UID and SUDO_GID, which sudo itself sets.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from airpanda.core.errors import AirpandaError
from airpanda.glexec import contract
from airpanda.glexec.launcher import kernel, lean
from airpanda.glexec.launcher.identity import Caller
from airpanda.glexec.launcher.limits import lift
from airpanda.glexec.launcher.refusal import not_authorised, refusal
from airpanda.glexec.launcher.request import Request, caller_of, keep_known
from airpanda.glexec.launcher.sources import OwnSignals


def main(config_path: Path, argv: list[str]) -> NoReturn:
    """Run one command and end this process with gLExec's exit code, without the work of an orderly end."""
    code, source = contract.INTERNAL_ERROR, None
    try:
        while os.open(os.devnull, os.O_RDWR) <= 2:  # the caller may have closed 0-2
            pass
        source = OwnSignals()
        code, message = _run(config_path, argv, source)
        if message:
            _say(message)
    except Exception as error:  # noqa: BLE001 - outermost frame, whose traceback _exit would swallow
        code = contract.LOST if source is not None and source.has_started else contract.INTERNAL_ERROR
        _say(f"the launcher failed: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it; the code is what counts
        print(f"glexec: {text}", file=sys.stderr, flush=True)


def _run(config_path: Path, argv: list[str], source: OwnSignals) -> tuple[int, str]:
    environ = dict(os.environ)
    os.environ.clear()
    try:
        if os.geteuid() != 0:
            raise not_authorised("the direct launcher must be started by root or through sudo")
        limits = lift()
        kernel.forbid_inspection()
        kernel.die_with_parent(signal.SIGTERM, os.getppid())
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        kind = "sudo" if "SUDO_UID" in environ else "root"
        request = Request(_caller(environ), tuple(argv), keep_known(environ), (0, 1, 2), directory, kind, limits)
        with lean.imports():
            from airpanda.glexec.launcher.run import conduct
        code, message = conduct(request, config_path, source)
    except AirpandaError as error:
        refused = refusal(error)
        code, message = refused.exit_code or contract.INTERNAL_ERROR, str(refused)
    except OSError as error:
        code = contract.LOST if source.has_started else contract.INTERNAL_ERROR
        message = f"the launcher: {error}"
    return code, message


def _caller(environ: Mapping[str, str]) -> Caller:
    if "SUDO_UID" not in environ:
        return caller_of(0, 0, os.getgroups())
    try:
        uid, gid = int(environ["SUDO_UID"]), int(environ["SUDO_GID"])
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, ValueError) as error:
        raise not_authorised("sudo did not say for whom it started the launcher") from error
    return caller_of(uid, gid, os.getgrouplist(name, gid))
