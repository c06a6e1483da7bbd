"""The few system calls that Python 3.9 does not have, by ctypes.

Source: unshare(2), setns(2), mount(2), mount_setattr(2), prctl(2), keyctl(2), persistent-keyring(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
from typing import Optional

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000

_SYS_KEYCTL = {
    "x86_64": 250,
    "aarch64": 219,
    "riscv64": 219,
    "loongarch64": 219,
    "ppc64le": 271,
    "s390x": 280,
    "armv7l": 311,
    "i686": 288,
}
_JOIN_SESSION_KEYRING, _SETPERM, _CLEAR, _LINK, _GET_PERSISTENT = 1, 5, 7, 8, 22
_SESSION_KEYRING, _USER_KEYRING, _USER_SESSION_KEYRING = -3, -4, -5
_USER_KEYRING_RIGHTS = 0x1F3F0000  # as the kernel makes them; a payload may have changed its own
_NO_KEYRINGS = (errno.ENOSYS, errno.EPERM)  # not built in, or forbidden for all of a container

_SYS_CLONE3, _CLONE_INTO_CGROUP = 435, 0x2_0000_0000

_libc = ctypes.CDLL(None, use_errno=True)
_holding_the_lock = ctypes.PyDLL(None, use_errno=True)
"""Its calls keep the interpreter's lock, which a forked child could not take again."""


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by ``flags``."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Enter the namespace behind a descriptor; for ``CLONE_NEWPID`` only children will be in it."""
    _check(_libc.setns(descriptor, kind), "setns")


def fork_into(cgroup: int) -> int:
    """As ``os.fork``, with the child in another cgroup from its first instant; ``cgroup`` is its open directory.

    Moving a process that runs already waits for all of the machine's processors, 10 ms and more. To be called in a
    process of one thread; the child may do system calls and ``exec``, as after any fork that Python has not made.

    Raises:
        OSError: the kernel refuses.

    Source: clone(2), clone3 with CLONE_INTO_CGROUP (Linux 5.7).
    """
    arguments = struct.pack("11Q", _CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup)
    _holding_the_lock.syscall.restype = ctypes.c_long
    pid = int(_holding_the_lock.syscall(ctypes.c_long(_SYS_CLONE3), arguments, ctypes.c_size_t(len(arguments))))
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"clone3: {os.strerror(number)}")
    return pid


def mount(source: str, target: str, kind: Optional[str], flags: int, data: str = "") -> None:
    """mount(2)."""
    fstype = None if kind is None else kind.encode()
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), fstype, ctypes.c_ulong(flags), os.fsencode(data) or None
    )
    _check(result, f"mount {target}")


def bind(source: str, target: str, *, read_only: bool = False) -> None:
    """Show ``source`` at ``target``, without device files and setuid bits; both exist and are of one type.

    What its own mount forbids stays forbidden.
    """
    kept = os.statvfs(source).f_flag & (MS_RDONLY | MS_NOEXEC)  # statvfs(2) has mount's numbers
    mount(source, target, None, MS_BIND)
    flags = MS_NOSUID | MS_NODEV | kept | (MS_RDONLY if read_only else 0)
    mount("none", target, None, MS_REMOUNT | MS_BIND | flags)


def set_read_only(path: str, read_only: bool, *, below: bool = False) -> None:
    """Make a mount (and with ``below`` all under it) read-only, or let it be written again; Linux 5.12."""
    attributes = struct.pack("QQQQ", int(read_only), int(not read_only), 0, 0)
    flags = ctypes.c_uint(_AT_RECURSIVE if below else 0)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR), _AT_FDCWD, os.fsencode(path), flags, attributes, ctypes.c_size_t(32)
    )
    _check(result, f"mount_setattr {path}")


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Receive a signal when the parent dies; exits at once if it is dead already."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0), "prctl PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)


def close_others(kept: int) -> None:
    """Close every descriptor above 2 but one."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != kept:
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
                os.close(descriptor)


def forbid_new_privileges() -> None:
    """No setuid file gains anything from here on. Cannot be undone."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl NO_NEW_PRIVS")


def forbid_inspection() -> None:
    """Nobody but root may trace this process, read its memory or dump its core."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl DUMPABLE")


def join_fresh_session_keyring() -> bool:
    """Leave the session keyring that this process has inherited; False where the kernel has no keyrings at all.

    Raises:
        OSError: it cannot be left.
    """
    try:
        _keyctl(_JOIN_SESSION_KEYRING, 0)
    except OSError as error:
        if error.errno in _NO_KEYRINGS:
            return False
        raise
    return True


def clear_own_keyrings() -> None:
    """Drop every key that outlives this account's processes: user, user session and persistent keyring.

    Raises:
        OSError: one of them could not be emptied.
    """
    if not join_fresh_session_keyring():
        return
    for keyring in (_USER_KEYRING, _USER_SESSION_KEYRING):
        _keyctl(_SETPERM, keyring, _USER_KEYRING_RIGHTS)
        _keyctl(_CLEAR, keyring)
    _keyctl(_LINK, _USER_KEYRING, _USER_SESSION_KEYRING)  # as the kernel makes them
    try:
        _keyctl(_CLEAR, _keyctl(_GET_PERSISTENT, -1, _SESSION_KEYRING))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


def _keyctl(operation: int, *arguments: int) -> int:
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOTSUP, f"keyctl on {os.uname().machine}: not known to the launcher")
    words = [ctypes.c_long(word) for word in (number, operation, *arguments, *[0] * (4 - len(arguments)))]
    _libc.syscall.restype = ctypes.c_long
    result = int(_libc.syscall(*words))
    if result < 0:
        _check(result, "keyctl")
    return result
