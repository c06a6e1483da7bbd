"""The first process of the payload's PID namespace: starts it, reaps everything, and takes all down with it.

It is the one process that may end last: when it ends, the kernel kills whatever is left in the namespace. It ends
when the payload does, or when its launcher is gone (end of the control connection).
"""

from __future__ import annotations

import _socket as socket
import contextlib
import json
import os
import resource
import select
import signal
from typing import Callable, NoReturn, Optional

from airpanda.glexec.contract import INTERNAL_ERROR
from airpanda.glexec.launcher import kernel
from airpanda.glexec.launcher.identity import open_as
from airpanda.glexec.launcher.payload import start_payload
from airpanda.glexec.launcher.plan import Plan
from airpanda.glexec.launcher.view import make_private_view

Report = dict[str, float]
"""The payload's wait ``status``, ``user_s`` and ``system_s`` of CPU, ``max_rss_kib``, and 1 in ``cut_off`` where it was
killed because nobody waited for it any more."""


def run_init(
    plan: Plan,
    control: socket.socket,
    status: socket.socket,
    cgroup: Optional[int],
    bereft: Callable[[Report], None],
) -> NoReturn:
    """Never returns. Sends one report on ``control``.

    Args:
        plan: what to run.
        control: signals come from here; its end is the end of all.
        status: for the payload's process.
        cgroup: the open directory of the cgroup that the payload is born in, where it has one.
        bereft: gets the report where the launcher does not live to take it.
    """
    try:
        if os.getpid() != 1:
            raise OSError("not the first process of a PID namespace")  # kill(-1) would reach the whole machine
        kernel.forbid_inspection()
        os.setsid()  # whoever kills the launcher's process group must not keep this one from its last record
        children, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        os.umask(0)
        make_private_view(plan)
        payload = _fork(cgroup)
        if payload == 0:
            signal.set_wakeup_fd(-1)
            control.close()
            start_payload(plan, status)
        status.close()
        ended = _watch(payload, control, children)
        report = _report(ended, _end_all(payload, ended))
        remove_proxy(plan)
        try:
            control.send(json.dumps(report).encode())
        except OSError:
            bereft(report)
    except OSError as error:
        with contextlib.suppress(OSError):
            status.send(f"{INTERNAL_ERROR} {error}".encode(errors="replace"))
    finally:
        os._exit(0)


def _report(ended: Optional[int], status: int) -> Report:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cut_off = ended is None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    cpu = {"user_s": usage.ru_utime, "system_s": usage.ru_stime}
    return {"status": status, **cpu, "max_rss_kib": usage.ru_maxrss, "cut_off": int(cut_off)}


def _fork(cgroup: Optional[int]) -> int:
    if cgroup is None:
        return os.fork()
    try:
        return kernel.fork_into(cgroup)
    except OSError:  # a kernel before 5.7, or a container that forbids the call: the child moves itself
        pid = os.fork()
        if pid == 0:
            procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup)
            os.write(procs, b"0")
            os.close(procs)
        return pid


def _watch(payload: int, control: socket.socket, children: int) -> Optional[int]:
    """Wait for the payload, reaping what was orphaned to us; None when the launcher is gone."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(children, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == children:
                with contextlib.suppress(BlockingIOError):
                    os.read(children, 4096)
                continue
            numbers = control.recv(16)
            if not numbers:
                return None
            for number in numbers:
                os.kill(payload, number)
        status = _reap(payload)
        if status is not None:
            return status


def _reap(payload: int) -> Optional[int]:
    """Reap all that has ended; the payload's wait status if it was among them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == payload:
            return status
        if pid == 0:
            return None


def _end_all(payload: int, status: Optional[int]) -> int:
    """Kill and reap everything in the namespace, so that its CPU time is counted too."""
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        try:
            pid, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            return int(signal.SIGKILL) if status is None else status
        if pid == payload:
            status = ended


def remove_proxy(plan: Plan) -> None:
    """Remove the payload's copy of the proxy, as its account. Inside a private /tmp the kernel does it."""
    if plan.proxy is None or plan.proxy.directory is None or not plan.proxy.made[0]:
        return
    path = plan.proxy.path

    def unlink() -> int:
        os.unlink(path)
        return os.open(os.devnull, os.O_RDONLY)

    with contextlib.suppress(OSError):  # gone already, or its owner has made it unremovable for itself
        os.close(open_as(plan.account, unlink))
