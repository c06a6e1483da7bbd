"""Doing one thing as somebody else, in a short-lived child, and becoming somebody for good.

The launcher uses the C module behind ``socket``: the Python one makes an enumeration of each of its constants, which
takes 2 ms of a launch by sudo.
"""

from __future__ import annotations

import _socket as socket
import array
import os
import signal
from collections.abc import Callable

from airpanda.core.identity import Account
from airpanda.core.records import dataclass

_MAX_REPLY = 4096


@dataclass(frozen=True)
class Caller:
    """The process that asks: its ids from the kernel or from sudo, and its supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str

    @property
    def account(self) -> Account:
        return Account(self.name, self.uid, (self.gid, *(g for g in self.groups if g != self.gid)))


def become(account: Account) -> None:
    """Take on an account's ids and exactly its groups, for ever.

    Raises:
        OSError: not permitted.
        RuntimeError: root could be had back; the process must end.
    """
    uid, gid = account.uid, account.gids[0]
    os.setgroups(list(account.gids))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if uid != 0:
        _prove_irrevocable()
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise RuntimeError("the kernel did not set the ids")
    if sorted(os.getgroups()) != sorted(set(account.gids)):
        raise RuntimeError("the kernel did not set the groups")


def _prove_irrevocable() -> None:
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise RuntimeError("root could be had back after the switch")


def open_as(account: Account, opener: Callable[[], int]) -> int:
    """The descriptor that ``opener`` opens under an account's ids and groups, close-on-exec.

    The work is done in a child, so that no error can leave this process under another identity. The child left
    root by changing its ids, which makes it undumpable: its account cannot trace it.

    Raises:
        OSError: as raised by ``opener``, with its number and text.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _child(account, opener, theirs)
    theirs.close()
    try:
        return _receive(ours)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _child(account: Account, opener: Callable[[], int], reply: socket.socket) -> None:
    """Never returns."""
    code = 1
    try:
        signal.alarm(10)
        become(account)
        descriptor = opener()
        rights = array.array("i", [descriptor])
        reply.sendmsg([b"ok"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        code = 0
    except OSError as error:
        reply.send(b"%d" % (error.errno or 5))
    finally:
        os._exit(code)


def _receive(reply: socket.socket) -> int:
    data, ancillary, _, _ = reply.recvmsg(_MAX_REPLY, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    if data == b"ok":
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                return array.array("i", content[:4])[0]
    number = int(data) if data.isdigit() else 5
    raise OSError(number, os.strerror(number))
