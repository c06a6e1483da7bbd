"""One run from request to exit code: the part that the socket daemon and the direct launcher share."""

from __future__ import annotations

import _socket as socket
import contextlib
import json
import os
import re
import select
import signal
import struct
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Callable, Optional

from airpanda.core.clock import utcnow
from airpanda.core.errors import AirpandaError, IdentitySwitchError
from airpanda.core.identity import Account
from airpanda.core.records import dataclass
from airpanda.core.secret import Secret
from airpanda.glexec import contract
from airpanda.glexec.config import LauncherConfig, read_config
from airpanda.glexec.launcher import kernel, lean
from airpanda.glexec.launcher.audit import Audit, CallerRecord, Value
from airpanda.glexec.launcher.cgroup import PayloadCgroup
from airpanda.glexec.launcher.gratia import MonitorLog
from airpanda.glexec.launcher.identity import open_as
from airpanda.glexec.launcher.init import Report, remove_proxy, run_init
from airpanda.glexec.launcher.meter import Meter
from airpanda.glexec.launcher.payload import GO, READY
from airpanda.glexec.launcher.plan import Plan, make_plan
from airpanda.glexec.launcher.proxyfile import read_proxy
from airpanda.glexec.launcher.refusal import client_error, internal_error, refusal
from airpanda.glexec.launcher.request import Request, check_caller, check_command, check_mode
from airpanda.glexec.launcher.sources import Source
from airpanda.glexec.mapping import MapfileMapper, Mapper, Mapping, check_ban, check_mapping

if TYPE_CHECKING:
    from airpanda.glexec.launcher.credential import Identity


# Each is imported by the run that needs it: a launcher that sudo starts pays for every import, for every step of a job.
def _lcmaps(config: LauncherConfig) -> Mapper:
    from airpanda.glexec.lcmaps import LcmapsMapper

    return LcmapsMapper(config)


def _dynamic(config: LauncherConfig) -> Mapper:
    from airpanda.glexec.dynamic import DynamicMapper

    return DynamicMapper(config)


_MAPPERS: dict[str, Callable[[LauncherConfig], Mapper]] = {"own": MapfileMapper, "lcmaps": _lcmaps, "dynamic": _dynamic}
_TOLD = ("dn", "fqans", "issuer", "serial", "fingerprint", "lease", "launcher", "mapping")
"""What the caller's record says about the identity besides the account."""
_PREPARATION_S = 30
_CREDENTIALS = struct.Struct("3i")
_MESSAGE = re.compile(rb"(\d{3}) (.*)", re.DOTALL)


@dataclass(frozen=True)
class Ended:
    """How a payload ended and what it used, measured from outside."""

    exit_code: int
    wall_s: float
    cpu_s: float
    max_rss_kib: int
    user_s: float
    system_s: float
    """Of all processes that were reaped."""
    cgroup: str
    """Its path; ``cpu_s`` is the cgroup's figure where there is one, else user and system together."""
    lost: str = ""
    """Why nobody saw the payload end, where that is so; it was killed then, and ``exit_code`` says no more."""


def conduct(request: Request, config_path: Path, source: Source) -> tuple[int, str]:
    """Check, map, run and record one request.

    Returns:
        gLExec's exit code, and a message for the caller, empty when the payload has run to its end.
    """
    fields = _asked(request)
    _bound_preparation()
    try:
        config = read_config(config_path)
        audit = Audit(config.log_file, to_syslog=config.syslog)
        fields["mapping"] = config.mapping
    except AirpandaError as error:
        refused = refusal(error)
        return refused.exit_code or contract.INTERNAL_ERROR, str(refused)
    record = CallerRecord(None)
    try:
        check_caller(request.caller, config)
        monitor = None if config.gratia_log is None else MonitorLog(config.gratia_log)
        record = CallerRecord(_open_record(request))
        records = _Records(audit, monitor, record, fields)
        ended = _run(request, config, source, records)
    except (AirpandaError, OSError) as error:
        signal.alarm(0)
        refused = refusal(error) if isinstance(error, AirpandaError) else internal_error(f"the launcher: {error}")
        code = refused.exit_code or contract.INTERNAL_ERROR
        record.write({"event": "refused", "exit_code": code, "reason": str(refused)})
        audit.write({**fields, "identity_switched": False, "rc": code, "reason": str(refused)}, now=utcnow())
        return code, str(refused)
    records.done(ended)
    if ended.lost:
        return contract.LOST, f"{ended.lost} after the command had started; its processes are ended"
    return contract.payload_code(ended.exit_code), ""


def _bound_preparation() -> None:
    """A file system or an account database that hangs ends in 202, not in a launcher that waits for ever."""

    def expire(number: int, frame: Optional[FrameType]) -> None:
        raise internal_error(f"the preparation took over {_PREPARATION_S} s; a file system or account database hangs")

    signal.signal(signal.SIGALRM, expire)
    signal.alarm(_PREPARATION_S)


def _asked(request: Request) -> dict[str, Value]:
    return {
        "id": request.environ.get(contract.LOG_ID, "")[:256],
        "launcher": request.launcher_kind,
        "caller": request.caller.name,
        "caller_uid": request.caller.uid,
        "command": request.argv[0][:1024] if request.argv else "",
    }


def resolve(request: Request, config: LauncherConfig, fields: dict[str, Value]) -> tuple[Identity, Mapping]:
    """Rules 1 to 5: the identity behind the caller's proxy, and its account."""
    mapper = _MAPPERS[config.mapping](config)
    try:
        mapper.begin()
        proxy = read_proxy(request.environ.get(contract.CLIENT_CERT), contract.CLIENT_CERT, request.caller)
        identity = _identifier()(proxy, config, utcnow())
        fields.update(dn=identity.dn, issuer=identity.issuer, serial=identity.serial, fingerprint=identity.fingerprint)
        fields["fqans"] = list(identity.fqans)
        check_ban(config, identity.dn, identity.fqans)
        mapping = mapper.map(identity.dn, identity.fqans, identity.pem)
    finally:
        mapper.close()
    check_mapping(mapping, caller_uid=request.caller.uid, config=config)
    account = mapping.account
    fields.update(user=account.name, uid=account.uid, gid=account.gids[0], gids=list(account.gids))
    fields["lease"] = mapping.lease
    return identity, mapping


def _identifier() -> Callable[[Secret[bytes], LauncherConfig, datetime], Identity]:
    """``identify``, with the cryptography below it: imported while LCMAPS, in its own process, loads its plug-ins."""
    with lean.imports():
        from airpanda.glexec.launcher.credential import identify
    return identify


class _Records:
    """The site's record of a run and the caller's, which tell the same."""

    def __init__(
        self, audit: Audit, monitor: Optional[MonitorLog], caller: CallerRecord, fields: dict[str, Value]
    ) -> None:
        self._audit = audit
        self._monitor = monitor
        self._caller = caller
        self.fields = fields
        """What is known of the run by now."""

    def started(self, pid: int, account: Account) -> None:
        """To be called before the payload may go on.

        Raises:
            ConfigurationError: the site has no record of it.
        """
        self._audit.started({**self.fields, "pid": pid}, now=utcnow())
        told = {name: self.fields[name] for name in _TOLD}
        ids: dict[str, Value] = {"pid": pid, "uid": account.uid, "gid": account.gids[0], "account": account.name}
        self._caller.write({"event": "started", **ids, **told})

    @property
    def are_asked_for(self) -> bool:
        """Whether the caller wants to know."""
        return self._caller.is_open

    def used(self, event: dict[str, Value]) -> None:
        """For the caller, while the payload runs."""
        self._caller.write(event)

    def ended(self, ended: Ended) -> None:
        """For the caller; the site's record is written when all is cleaned up."""
        usage: dict[str, Value] = {"wall_s": ended.wall_s, "cpu_s": ended.cpu_s, "max_rss_kib": ended.max_rss_kib}
        lost: dict[str, Value] = {"lost": ended.lost} if ended.lost else {}
        self._caller.write({"event": "ended", "exit_code": ended.exit_code, **usage, **lost})

    def done(self, ended: Ended) -> None:
        """For the site. A payload that was lost has run: its owner, its time and its end are on record like others."""
        done = {**self.fields, "identity_switched": True, "rc": ended.exit_code}
        done.update(wall=ended.wall_s, cpu=ended.cpu_s, maxrss_kb=ended.max_rss_kib)
        done.update(cpu_user=ended.user_s, cpu_system=ended.system_s, cgroup=ended.cgroup or None)
        if ended.lost:
            done["lost"] = ended.lost
        self._audit.write(done, now=utcnow())
        if self._monitor is not None:
            self._monitor.write(done, utcnow())


def _run(request: Request, config: LauncherConfig, source: Source, records: _Records) -> Ended:
    check_mode(request.environ)
    check_command(request.argv)
    identity, mapping = resolve(request, config, records.fields)
    given = _payload_proxy(request, config, identity)
    plan = make_plan(request, config, mapping, given.pem)
    cgroup = PayloadCgroup.make(max_processes=config.max_processes) if config.cgroup else None
    try:
        return _Run(plan, source, records, cgroup).conduct()
    finally:
        if cgroup is not None:
            cgroup.remove()
        if mapping.held is not None:
            with contextlib.suppress(OSError):  # it is idle a little earlier then; the payload has run
                mapping.held.touch()


def _payload_proxy(request: Request, config: LauncherConfig, identity: Identity) -> Identity:
    """GLEXEC_SOURCE_PROXY is what the payload gets; it must stand for the very person who was mapped."""
    path = request.environ.get(contract.SOURCE_PROXY)
    if path is None or path == request.environ.get(contract.CLIENT_CERT):
        return identity
    source = _identifier()(read_proxy(path, contract.SOURCE_PROXY, request.caller), config, utcnow())
    if source.dn != identity.dn:
        raise client_error(f"{contract.SOURCE_PROXY} and {contract.CLIENT_CERT} belong to different people")
    check_ban(config, source.dn, source.fqans)  # its roles are what the payload can use
    return source


def _open_record(request: Request) -> Optional[int]:
    path = request.environ.get(contract.RECORD)
    if path is None:
        return None
    if not os.path.isabs(path):
        raise client_error(f"{contract.RECORD} must be an absolute path")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return open_as(request.caller.account, lambda: os.open(path, flags, 0o600))
    except OSError as error:
        raise client_error(f"{contract.RECORD}: the caller cannot make this file: {error.strerror}") from error


class _Run:
    """The parent's side of one payload: start, prove, forward, wait, account."""

    def __init__(self, plan: Plan, source: Source, records: _Records, cgroup: Optional[PayloadCgroup]) -> None:
        signal.alarm(0)  # what follows has its own limits
        self._cgroup = cgroup
        self._plan = plan
        self._started_at = time.monotonic()
        self._source = source
        self._records = records
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._status, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._status.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._init = _fork_into_new_pid_namespace()
        if self._init == 0:
            self._control.close()
            self._status.close()
            run_init(plan, control, status, None if self._cgroup is None else self._cgroup.directory, self._record_loss)
        control.close()
        status.close()
        self._report: Optional[Report] = None
        self._may_have_run = False
        self._lost = ""

    def conduct(self) -> Ended:
        """The payload's end, or how it was lost.

        Raises:
            IdentitySwitchError: the payload was not started; nothing of it is left.
            OSError: the same.
        """
        try:
            self._start()
            self._wait()
        except (AirpandaError, OSError) as error:
            os.kill(self._init, signal.SIGKILL)
            if not self._may_have_run:
                os.waitpid(self._init, 0)
                remove_proxy(self._plan)
                raise
            self._lost = self._lost or f"the launcher failed ({error})"
        return self._end()

    def _start(self) -> None:
        pid, message = self._receive_status(_PREPARATION_S)
        if message != READY:
            raise _not_started(message)
        prove_switched(pid, self._plan.account)
        self._records.started(pid, self._plan.account)
        if self._cgroup is not None:
            self._cgroup.begin()
        self._source.started()
        self._status.send(GO)
        self._may_have_run = True
        _, message = self._receive_status(_PREPARATION_S)
        if message:
            self._may_have_run = False
            raise _not_started(message)

    def _receive_status(self, timeout_s: float) -> tuple[int, bytes]:
        """What the payload's process says, and its pid as the kernel tells it; watches the asker meanwhile."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise internal_error("the payload's process did not come up in time")
            status = self._status.fileno()
            ready, _, _ = select.select([status, *self._source.descriptors()], [], [], left)
            if status in ready:
                return _receive_with_pid(self._status)
            if ready and self._source.read() is None:
                self._lost = self._source.gone
                raise internal_error(f"{self._lost} before the payload started")

    def _wait(self) -> None:
        """Forward signals until the report comes, or until the first process or the asker is gone."""
        meter = Meter(self._init, None if self._cgroup is None else self._cgroup.path)
        poll = select.poll()
        for descriptor in (self._control.fileno(), *self._source.descriptors()):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = poll.poll(1000 * meter.left_s() if self._records.are_asked_for else None)
            if not ready:
                self._records.used(meter.look())
            for descriptor, _ in ready:
                if descriptor == self._control.fileno():
                    data = self._control.recv(4096)
                    self._report = json.loads(data) if data else None
                    return
                numbers = self._source.read()
                if numbers is None:
                    self._lost = self._source.gone
                    with contextlib.suppress(OSError):  # it has ended, and its report is on the way
                        self._control.shutdown(socket.SHUT_WR)
                    for gone in self._source.descriptors():
                        poll.unregister(gone)
                    break
                if numbers:
                    with contextlib.suppress(OSError):
                        self._control.send(bytes(numbers))

    def _end(self) -> Ended:
        _, _, usage = os.wait4(self._init, 0)
        report = self._report
        if report is None:
            remove_proxy(self._plan)
            self._lost = self._lost or "the first process of the payload's namespace was killed"
            cpu = {"user_s": usage.ru_utime, "system_s": usage.ru_stime}
            report = {"status": int(signal.SIGKILL), **cpu, "max_rss_kib": usage.ru_maxrss, "cut_off": 1}
        return self._told(report, self._lost)

    def _record_loss(self, report: Report) -> None:
        """In the namespace's first process, which has seen this one go: nobody else is left to keep the records."""
        self._records.done(self._told(report, "the launcher was killed"))

    def _told(self, report: Report, lost: str) -> Ended:
        """What the caller's record says of the end; ``lost`` is no matter where the payload had ended by itself."""
        wall = time.monotonic() - self._started_at
        user, system = report["user_s"], report["system_s"]
        cpu, place = user + system, ""
        if self._cgroup is not None:
            self._cgroup.kill()
            with contextlib.suppress(OSError, StopIteration):  # somebody has removed it
                cpu, place = self._cgroup.cpu_s(), str(self._cgroup.path)
        ended = Ended(
            exit_code=contract.shell_code(os.waitstatus_to_exitcode(int(report["status"]))),
            wall_s=round(wall, 3),
            cpu_s=round(cpu, 3),
            max_rss_kib=int(report["max_rss_kib"]),
            user_s=round(user, 3),
            system_s=round(system, 3),
            cgroup=place,
            lost=lost if report["cut_off"] else "",
        )
        self._records.ended(ended)
        return ended


def _fork_into_new_pid_namespace() -> int:
    """Fork a child that is the first process of a new PID namespace; this process stays where it is.

    Raises:
        OSError: the kernel refuses; a payload without its own namespace is not started.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.unshare(kernel.CLONE_NEWPID)
        pid = os.fork()
        if pid != 0:
            kernel.setns(own, kernel.CLONE_NEWPID)
        return pid
    finally:
        os.close(own)


def _receive_with_pid(status: socket.socket) -> tuple[int, bytes]:
    data, ancillary, _, _ = status.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0], data
    return 0, data


def _not_started(message: bytes) -> IdentitySwitchError:
    match = _MESSAGE.fullmatch(message)
    if match is None:
        return internal_error("the payload's process ended before it was ready")
    code, text = int(match[1]), match[2].decode(errors="replace")
    if code == contract.CLIENT_ERROR:
        return client_error(f"{contract.TARGET_PROXY}: {text}")
    if code == contract.EXEC_FAILED:
        return IdentitySwitchError(f"the command cannot be executed: {text}", exit_code=code)
    return internal_error(f"preparing the payload: {text}")


def prove_switched(pid: int, account: Account) -> None:
    """Read from outside that a process has exactly an account's ids and groups, and no way back to root.

    Raises:
        IdentitySwitchError: 202, it has not; the payload must not start.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise internal_error(f"the switch cannot be proven: {error.strerror}") from error
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    uid, gid = account.uid, account.gids[0]
    proven = (
        _numbers(lines["Uid"]) == [uid] * 4
        and _numbers(lines["Gid"]) == [gid] * 4
        and set(_numbers(lines["Groups"])) == set(account.gids)
        and int(lines["CapEff"], 16) == int(lines["CapPrm"], 16) == 0
        and lines["NoNewPrivs"].strip() == "1"
    )
    if not proven:
        raise internal_error("the payload's process does not have the ids it was given")


def _numbers(text: str) -> Sequence[int]:
    return [int(word) for word in text.split()]
