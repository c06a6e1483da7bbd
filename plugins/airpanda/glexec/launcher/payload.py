"""The last steps before the payload: becoming its account, for good, and exec."""

from __future__ import annotations

import _socket as socket
import contextlib
import os
import resource
import signal
import stat
from typing import NoReturn

from airpanda.glexec.contract import CLIENT_ERROR, EXEC_FAILED, INTERNAL_ERROR
from airpanda.glexec.launcher import kernel
from airpanda.glexec.launcher.identity import become
from airpanda.glexec.launcher.limits import restore
from airpanda.glexec.launcher.plan import Plan, TargetProxy

READY, GO = b"ready", b"go"


def start_payload(plan: Plan, status: socket.socket) -> NoReturn:
    """Never returns. Says ``ready`` under the new identity, waits for ``go``, then becomes the command.

    A failure is told as ``CODE text`` on ``status``; its end without a text means that the command runs.
    """
    code = INTERNAL_ERROR
    try:
        _prepare(plan, status)
        code = CLIENT_ERROR
        if plan.proxy is not None:
            _write_proxy(plan.proxy, plan.account.uid)
        status.send(READY)
        if status.recv(16) == GO:
            code = EXEC_FAILED
            restore(plan.limits)
            os.execve(plan.argv[0], list(plan.argv), dict(plan.environ))  # noqa: S606
    except (OSError, RuntimeError, ValueError) as error:
        text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        status.send(f"{code} {text}".encode(errors="replace"))
    finally:
        os._exit(EXEC_FAILED)


def _prepare(plan: Plan, status: socket.socket) -> None:
    os.setsid()
    for number, descriptor in enumerate(plan.standard):
        if number != descriptor:
            os.dup2(descriptor, number)
        os.set_inheritable(number, True)
    kernel.close_others(status.fileno())
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NPROC, plan.max_processes)
    kernel.join_fresh_session_keyring()
    become(plan.account)
    kernel.forbid_new_privileges()
    os.umask(0o077)
    _enter(plan)
    _restore_signals()


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _enter(plan: Plan) -> None:
    """The caller's working directory, if the target may enter it and it is that very directory; else the root."""
    place = plan.directory
    if place is not None:
        with contextlib.suppress(OSError):
            os.chdir(place.path)
            if place.is_at("."):
                return
    os.chdir("/")


def _restore_signals() -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and a caller may have blocked or ignored others."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            with contextlib.suppress(OSError, ValueError):  # numbers that the C library keeps for itself
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _write_proxy(proxy: TargetProxy, uid: int) -> None:
    """Create the payload's copy, as the payload's account, in the directory that was checked before."""
    parent, name = os.path.split(proxy.path)
    directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if proxy.directory is not None:
        status = os.fstat(directory)
        same = (status.st_dev, status.st_ino) == (proxy.directory.device, proxy.directory.inode)
        if not same or status.st_uid != uid or status.st_mode & stat.S_IWOTH:
            raise OSError(f"{parent} changed while the payload was being prepared")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
        proxy.made[0] = 1
        file.write(proxy.pem.reveal())
    os.close(directory)
