"""What the local computing element runs on the worker node: one request on stdin, one answer on stdout, then it ends.

It is sent as source text, so it needs nothing on the node but a Python 3.9; it imports only the standard library.
Started by root it becomes the pilots' account at once and for good, and touches files only as that account; started
by anybody else it must already be that account. It sets no ``no_new_privs``: pilots may have to call a launcher that
is reached by sudo.

One directory holds one pilot, named ``<tag>-<pilot_id>``, mode 0700:

===============  ==============================================================================================
``run.lock``     locked for as long as the keeper, the wrapper or the pilot lives; the truth about "running"
``handle.json``  pid and start time of the keeper; written before the pilot starts, so a repeat never doubles
``pilot.json``   the pilot's configuration and token, 0600; removed when the pilot has read it, and at its end
``wrapper.sh``   what finds a Python and becomes the pilot
``pilot.log``    what the pilot printed
``sweep.json``   the pilot's notes for cleaning up after it, should it be killed; holds no secret
``exit``         the pilot's exit code, written by the keeper
``cancelled``    made when a cancel was asked for
===============  ==============================================================================================
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import stat
import sys
import time

TYPE_CHECKING = False  # typing itself would cost each call some milliseconds
if TYPE_CHECKING:
    from typing import Any, Optional

MARK = "airpanda-node-agent "
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
START_LIMIT_S = 5.0
KEPT_S = 2 * 86400  # what a pilot left that ended, unless it is purged before

# The keeper outlives TERM to write the exit code. A caught signal is reset in its children; an ignored one would
# stay ignored, hence the empty command.
KEEPER = """
trap : TERM INT HUP QUIT USR1 USR2 XCPU
sh ./wrapper.sh --code "$1" --python "$2" pilot.json
code=$?
rm -f pilot.json
[ ! -f sweep.json ] || sh ./wrapper.sh --code "$1" --python "$2" sweep.json --sweep
echo "$code" > exit.new && mv exit.new exit
"""

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
SMALL = 65536


class Refusal(Exception):
    """The answer is an error: ``kind`` is ``invalid``, ``throttled`` or ``unavailable``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def become(account: str, directory: str) -> None:
    """Be the pilots' account, with its own groups, in an existing directory of its own."""
    if os.geteuid() != 0:
        if account and pwd.getpwuid(os.geteuid()).pw_name != account:
            raise Refusal("invalid", f"only root can start pilots as {account!r}; submit as root or as that account")
    else:
        entry = pilots_account(account)
        make_as_root(directory, entry.pw_uid, entry.pw_gid)
        os.initgroups(account, entry.pw_gid)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    try:
        os.makedirs(directory, 0o711, exist_ok=True)
    except OSError as error:
        raise Refusal("invalid", f"[ce] directory = {directory!r} cannot be made: {error.strerror}") from None


def pilots_account(name: str) -> pwd.struct_passwd:
    if not name:
        raise Refusal("invalid", "pilots do not run as root: set [ce] account to an unprivileged account of the node")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise Refusal("invalid", f"[ce] account = {name!r} does not exist on the node") from None
    if entry.pw_uid == 0:
        raise Refusal("invalid", f"pilots do not run as root: [ce] account = {name!r} has uid 0")
    return entry


def make_as_root(directory: str, uid: int, gid: int) -> None:
    """Make a missing directory for the account, in places that root alone can change.

    Where a link stands, or anybody else could put one, root makes and changes nothing: the account may do it itself.
    """
    *parents, last = [name for name in directory.split("/") if name]
    with contextlib.ExitStack() as held:
        here = os.open("/", DIRECTORY)
        held.callback(os.close, here)
        for name in parents:
            if not roots_alone(here):
                return
            make_at(here, name, 0o755)
            try:
                here = os.open(name, DIRECTORY, dir_fd=here)
            except OSError:  # a link, or no directory
                return
            held.callback(os.close, here)
        if roots_alone(here) and make_at(here, last, 0o711):
            made = os.open(last, DIRECTORY, dir_fd=here)
            held.callback(os.close, made)
            os.fchown(made, uid, gid)


def roots_alone(descriptor: int) -> bool:
    """Whether only root can rename or replace root's entries in this directory."""
    status = os.fstat(descriptor)
    return status.st_uid == 0 and (not status.st_mode & 0o022 or bool(status.st_mode & stat.S_ISVTX))


def make_at(parent: int, name: str, mode: int) -> bool:
    """Make a directory; False where the name is taken."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def check_directory(directory: str) -> None:
    """The account's own, open to others for passing through only."""
    status = os.lstat(directory)
    if status.st_uid != os.geteuid():
        raise Refusal("invalid", f"[ce] directory = {directory!r} must belong to the pilots' account")
    if status.st_mode & 0o022:
        raise Refusal("invalid", f"[ce] directory = {directory!r} must not be writable by others; chmod 0711")


# --- one pilot's directory -----------------------------------------------------------------------------------


def pilots_in(directory: str) -> list[str]:
    """Names of the pilots' directories; others, such as sandboxes, may stand beside them."""
    return [name for name in os.listdir(directory) if name.rpartition("-")[2].isdigit() and "-" in name[1:]]


def is_running(place: str) -> bool:
    """Whether keeper, wrapper or pilot still hold the lock."""
    try:
        descriptor = os.open(f"{place}/run.lock", READ)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_private(place: str, name: str, text: str) -> None:
    """Put a 0600 file, whole or not at all."""
    temporary = os.path.join(place, f".{name}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, os.path.join(place, name))


def read_text(place: str, name: str) -> Optional[str]:
    """One of the small files; thousands of them are read in one call, so without a file object."""
    try:
        descriptor = os.open(f"{place}/{name}", READ)
    except FileNotFoundError:
        return None
    try:
        return os.read(descriptor, SMALL).decode()
    finally:
        os.close(descriptor)


def is_there(place: str, name: str) -> bool:
    return os.access(f"{place}/{name}", os.F_OK)


def stat_field(pid: int, number: int) -> Optional[int]:
    """One field of /proc/PID/stat, numbered as in proc(5), from 4 on; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[number - 3])
    except (OSError, IndexError, ValueError):
        return None


def start_ticks(pid: int) -> Optional[int]:
    """Start time of a process in clock ticks: with the pid it names one process."""
    return stat_field(pid, 22)


def group_of(pid: int) -> Optional[int]:
    return stat_field(pid, 5)


def start(place: str, files: dict[str, str], arguments: list[str]) -> bool:
    """Start one pilot in its directory unless it was started before. True: it was."""
    os.makedirs(place, 0o700, exist_ok=True)
    if read_text(place, "handle.json") is not None:
        return True
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.close(reading)
            become_keeper(place, files, arguments, writing)
        except OSError as error:
            os.write(writing, f"!{error}".encode())
        finally:
            os._exit(71)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read(4096).decode(errors="replace")
    if said.startswith("!"):
        raise Refusal("unavailable", f"the pilot in {place} cannot be started: {said[1:]}")
    return said == "="


def become_keeper(place: str, files: dict[str, str], arguments: list[str], answer: int) -> None:
    """In the child: lock, check, write, exec. Whoever dies between two steps leaves a state that a repeat mends."""
    os.setsid()
    os.chdir(place)
    os.umask(0o077)
    lock = os.open("run.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + START_LIMIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if read_text(place, "handle.json") is not None or time.monotonic() > until:
                break
            time.sleep(0.01)
    if read_text(place, "handle.json") is not None:
        os.write(answer, b"=")
        return
    for name, text in files.items():
        write_private(place, name, text)
    os.makedirs("tmp", 0o700, exist_ok=True)
    write_private(place, "handle.json", json.dumps({"pid": os.getpid(), "start": start_ticks(os.getpid())}))
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open("pilot.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.set_inheritable(lock, True)
    environment = {"PATH": PATH, "HOME": place, "LANG": "C.UTF-8", "TMPDIR": os.path.join(place, "tmp")}
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execve("/bin/sh", ["sh", "-c", KEEPER, "airpanda-pilot", *arguments], environment)  # noqa: S606 - becoming the keeper is the point


def status_of(place: str) -> dict[str, Any]:
    started = is_there(place, "handle.json")
    if is_running(place):
        return {"state": "running" if started else "submitted"}
    if not started:
        return {"state": "unknown", "reason": "the computing element has no such pilot"}
    code = read_text(place, "exit")
    if code is not None and code.strip() == "0":
        return {"state": "done", "exit_code": 0}
    if is_there(place, "cancelled"):
        return {"state": "cancelled", "exit_code": int(code) if code else None, "reason": "cancelled on request"}
    if code is None:
        return {"state": "lost", "reason": "the pilot is gone without an exit code: killed, or the node went down"}
    return {"state": "failed", "exit_code": int(code), "reason": f"the pilot ended with exit code {int(code)}"}


def cancel_one(place: str, grace_s: float) -> str:
    handle = read_text(place, "handle.json")
    if handle is None:
        return "not-found"
    if not is_running(place):
        return "already-over"
    asked = read_text(place, "cancelled")
    force = asked is not None and time.time() - float(asked) > grace_s
    if asked is None:
        write_private(place, "cancelled", str(time.time()))
    keeper = json.loads(handle)
    if start_ticks(keeper["pid"]) == keeper["start"]:
        with contextlib.suppress(ProcessLookupError):
            if force:
                kill_pilot(keeper["pid"])
            else:
                os.killpg(keeper["pid"], signal.SIGTERM)
    return "accepted"


def kill_pilot(keeper: int) -> None:
    """SIGKILL to the keeper's group without the keeper, which then cleans up; to the keeper if it is alone."""
    others = [int(n) for n in os.listdir("/proc") if n.isdigit() and int(n) != keeper and group_of(int(n)) == keeper]
    for pid in others or [keeper]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def purge_one(place: str) -> str:
    if not os.path.isdir(place):
        return "not-found"
    if is_running(place):
        return "still-running"
    shutil.rmtree(place)
    return "accepted"


def forget_old(directory: str, tag: str) -> None:
    """Remove what pilots left that ended long ago: nobody purges those that ended well, and disks are finite.

    Not of this tag, whose pilots a repeat adopts.
    """
    for name in pilots_in(directory):
        place = os.path.join(directory, name)
        if name.rpartition("-")[0] == tag:
            continue
        with contextlib.suppress(OSError):
            is_ours = is_there(place, "run.lock") and is_there(place, "wrapper.sh")
            if is_ours and time.time() - os.lstat(place).st_mtime > KEPT_S and not is_running(place):
                shutil.rmtree(place)


# --- requests ------------------------------------------------------------------------------------------------


def submit(request: dict[str, Any]) -> dict[str, Any]:
    directory, tag = request["directory"], request["tag"]
    with open(os.path.join(directory, ".submit.lock"), "a", opener=_private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        forget_old(directory, tag)
        places = {pilot: os.path.join(directory, f"{tag}-{pilot}") for pilot in request["pilots"]}
        fresh = [p for p, place in places.items() if read_text(place, "handle.json") is None]
        busy = load(request)["running"] if fresh else 0
        if busy + len(fresh) > request["max_pilots"]:
            text = f"{busy} pilots run and {len(fresh)} more would exceed [ce] max_pilots = {request['max_pilots']}"
            raise Refusal("throttled", text)
        adopted = []
        for pilot, place in places.items():
            files = {"pilot.json": request["pilots"][pilot], "wrapper.sh": request["wrapper"]}
            if start(place, files, request["arguments"]):
                adopted.append(pilot)
    return {"handles": {pilot: os.path.basename(place) for pilot, place in places.items()}, "adopted": adopted}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def find(request: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name in pilots_in(request["directory"]):
        if name.rpartition("-")[0] == request["tag"]:
            found[name] = status_of(os.path.join(request["directory"], name))
    return {"statuses": {name: status for name, status in found.items() if status["state"] != "unknown"}}


def tagged(request: dict[str, Any]) -> dict[str, Any]:
    """Names of running pilots whose tag begins with the prefix."""
    directory = request["directory"]
    ours = [name for name in pilots_in(directory) if name.startswith(request["prefix"])]
    return {"names": [name for name in ours if is_running(os.path.join(directory, name))]}


def load(request: dict[str, Any]) -> dict[str, Any]:
    """How many pilots, of any tag, are between their start and their end."""
    directory = request["directory"]
    return {"running": sum(is_running(os.path.join(directory, name)) for name in pilots_in(directory))}


def renew(request: dict[str, Any]) -> dict[str, Any]:
    """Put the pilots' credential in its place, whole or not at all; what stood there must be the account's own."""
    directory, name = os.path.split(request["proxy"])
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(request["proxy"])
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise Refusal("invalid", f"[pilot] proxy = {request['proxy']!r} is not a file of the pilots' account")
    try:
        write_private(directory, name, request["credential"])
    except OSError as error:
        raise Refusal("invalid", f"[pilot] proxy = {request['proxy']!r} cannot be written: {error.strerror}") from None
    return {}


def status(request: dict[str, Any]) -> dict[str, Any]:
    return {"statuses": {name: status_of(os.path.join(request["directory"], name)) for name in request["handles"]}}


def cancel(request: dict[str, Any]) -> dict[str, Any]:
    grace_s = request["grace_s"]
    places = {name: os.path.join(request["directory"], name) for name in request["handles"]}
    return {"outcomes": {name: cancel_one(place, grace_s) for name, place in places.items()}}


def purge(request: dict[str, Any]) -> dict[str, Any]:
    places = {name: os.path.join(request["directory"], name) for name in request["handles"]}
    return {"outcomes": {name: purge_one(place) for name, place in places.items()}}


def fetch(request: dict[str, Any]) -> dict[str, Any]:
    (name,) = request["handles"]
    try:
        with open(os.path.join(request["directory"], name, "pilot.log"), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - request["tail_bytes"]))
            return {"data": base64.b64encode(file.read(request["tail_bytes"])).decode()}
    except FileNotFoundError:
        return {"data": None}


OPERATIONS = {
    "submit": submit,
    "status": status,
    "find": find,
    "tagged": tagged,
    "load": load,
    "cancel": cancel,
    "purge": purge,
    "fetch": fetch,
    "renew": renew,
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        become(request["account"], request["directory"])
        check_directory(request["directory"])
        return OPERATIONS[request["op"]](request)
    except Refusal as refusal:
        return {"error": refusal.kind, "text": str(refusal)}
    except OSError as error:
        return {"error": "unavailable", "text": f"the node refuses: {error}"}


if __name__ == "__main__":
    sys.stdout.write(MARK + json.dumps(answer(json.load(sys.stdin))) + "\n")
