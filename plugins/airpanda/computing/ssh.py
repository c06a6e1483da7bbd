"""Programs on a submit host over one persistent SSH connection.

The host must prove the key that ``known_hosts`` has for it. Nothing of the user's own set-up takes part: no key is
searched for, no agent is asked unless the login says so, and no configuration file of OpenSSH is read.
"""

from __future__ import annotations

import io
import random
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko  # type: ignore[import-untyped]

from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
)
from airpanda.computing.transports import MAX_OUTPUT_BYTES, AnswerLostError, Completed, command_line
from airpanda.core.errors import CredentialError
from airpanda.core.secret import Secret
from airpanda.x509.files import read_private

_CHUNK = 65536
_FIRST_DELAY_S = 0.1
_CONNECTS = 6
# The remote shell reads to the end before it ends: paramiko may send data or the end of data behind the close of a
# channel, and sshd answers that with the end of the whole connection.
_DRAIN = ("sh", "-c", '"$@"; code=$?; cat >/dev/null; exit "$code"', "airpanda")
_NO_ANSWER = re.compile(r"(?i)timeout|timed out|shut down|\bEOF\b")
_NOTHING_TO_SHOW = "No authentication methods available"  # an SSHException of paramiko like any other
_KEYS = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)


class HostKeyError(ComputingElementError):
    """The host did not prove the key on record: nobody logs in until an administrator has looked."""

    code = "ce-host-key"

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=False)


class _BrokenBeforeError(Exception):
    """The connection was found broken before the command was sent: a new one may carry it."""


@dataclass(frozen=True)
class SshLogin:
    """Who logs in, and with what. ``private_key`` is the text of a key, ``key_file`` the path of one."""

    user: str
    password: Secret[str] | None = None
    private_key: Secret[str] | None = None
    key_file: Path | None = None
    passphrase: Secret[str] | None = None
    use_agent: bool = False

    def __post_init__(self) -> None:
        if not (self.password or self.private_key or self.key_file or self.use_agent):
            raise CECredentialError(f"the SSH login of {self.user!r} has no key, no password and no agent to use")


class ChannelBudget:
    """How many channels may be open at once. It shrinks when the host refuses one, to what the host did allow."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use = 0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        return self._limit

    @contextmanager
    def channel(self, end: float) -> Iterator[None]:
        """Hold one of the channels; waits for it until ``end`` of the monotonic clock.

        Raises:
            CEUnavailableError: none came free in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._in_use < self._limit, max(0.0, end - time.monotonic())):
                raise CEUnavailableError(f"all {self._limit} channels to the host stayed busy")
            self._in_use += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_use -= 1
                self._changed.notify_all()

    def refused(self) -> bool:
        """The host refused the channel of the caller. True: it was the only one, so the limit is not to blame."""
        with self._changed:
            self._limit = max(1, min(self._limit, self._in_use - 1))
            return self._in_use == 1


class SshTransport:
    """One connection to one host, opened at the first ``run``, and again when it broke.

    Args:
        known_hosts: a file in OpenSSH's format that has the host's key.
        connect_timeout_s: the longest that all attempts to connect may take together.
        channels: how many commands may run at once, until the host allows fewer (sshd's MaxSessions).
        patience_s: how long a host may refuse the only session, as it does while it still closes the one before.
    """

    def __init__(
        self,
        host: str,
        login: SshLogin,
        *,
        known_hosts: Path,
        port: int = 22,
        connect_timeout_s: float = 30.0,
        keepalive_s: int = 30,
        channels: int = 10,
        patience_s: float = 5.0,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> None:
        if not login.user:
            raise CECredentialError(f"nobody is to log in at {host}: set [ce] user or the login of the connection")
        self._host, self._port, self._login = host, port, login
        self._known_hosts = known_hosts
        self._connect_timeout_s = connect_timeout_s
        self._keepalive_s, self._patience_s = keepalive_s, patience_s
        self._max_output_bytes = max_output_bytes
        self._where = f"{login.user}@{host}:{port}"
        self._client: Any = None
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self.budget = ChannelBudget(channels)

    def run(self, argv: Sequence[str], stdin: bytes = b"", *, timeout_s: float) -> Completed:
        command_line(argv)
        line = command_line([*_DRAIN, *argv])
        end = time.monotonic() + timeout_s
        delay_s, waited_s, broken = 0.01, 0.0, 0
        while True:
            with self.budget.channel(end):
                client = self._connected(end)
                with _deadline(end, client):
                    try:
                        with self._session(client) as channel:
                            return self._converse(channel, line, stdin)
                    except paramiko.ChannelException:
                        alone = self.budget.refused()
                    except _BrokenBeforeError as error:
                        broken += 1
                        if broken > 1 or time.monotonic() >= end:
                            raise CEUnavailableError(str(error)) from error
                        continue
            if alone:
                if waited_s >= self._patience_s or time.monotonic() + delay_s > end:
                    raise CEUnavailableError(f"{self._where} opens no session: raise sshd's MaxSessions, or wait")
                time.sleep(delay_s)
                waited_s, delay_s = waited_s + delay_s, min(2 * delay_s, 0.5)

    def close(self) -> None:
        with self._lock:
            self._drop()

    # --- the connection ------------------------------------------------------------------------------------

    def _connected(self, end: float) -> Any:
        """A living connection; an old one that died is replaced."""
        with self._lock:
            if self._client is not None and _is_alive(self._client):
                return self._client
            self._drop()
            end = min(end, time.monotonic() + self._connect_timeout_s)
            delay = _FIRST_DELAY_S
            for attempt in range(1, _CONNECTS + 1):
                try:
                    self._client = self._connect(end)
                    return self._client
                except CEUnavailableError as error:
                    pause = delay * random.uniform(0.5, 1.5)  # noqa: S311 - spreads reconnects, guards nothing
                    if attempt == _CONNECTS or time.monotonic() + pause >= end:
                        raise CEUnavailableError(f"{error} ({attempt} attempts)") from error
                time.sleep(pause)
                delay *= 2
        raise AssertionError("the loop returns or raises")

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connect(self, end: float) -> Any:
        client = self._client_that_knows_the_host()
        key = self._key()
        left = max(0.1, end - time.monotonic())
        with ExitStack() as undo:
            undo.callback(client.close)
            try:
                sock = undo.enter_context(socket.create_connection((self._host, self._port), timeout=left))
                # Without it every exchange waits some 40 ms for a delayed acknowledgement; paramiko leaves it off.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._log_in(client, sock, key, left)
            except paramiko.BadHostKeyException as error:
                raise HostKeyError(
                    f"{self._host}:{self._port} shows another host key than {self._known_hosts} has. Either the host "
                    "was set up anew or somebody is in between: an administrator must find out and correct the file"
                ) from error
            except paramiko.AuthenticationException as error:
                if _NO_ANSWER.search(str(error)):  # paramiko has one kind of error for a refusal and for silence
                    raise CEUnavailableError(f"{self._where} fell silent during the login: {error}") from error
                raise CECredentialError(
                    f"{self._where} refuses the login: check key or password of the connection"
                ) from error
            except (paramiko.SSHException, OSError, EOFError) as error:
                if str(error) == _NOTHING_TO_SHOW:
                    raise CECredentialError(
                        f"there is nothing to log in to {self._where} with: the agent that the connection names is not"
                        " there, or has no key"
                    ) from error
                raise CEUnavailableError(f"{self._where} cannot be reached: {error or type(error).__name__}") from error
            client.get_transport().set_keepalive(self._keepalive_s)
            undo.pop_all()
        return client

    def _log_in(self, client: Any, sock: socket.socket, key: Any, timeout_s: float) -> None:
        login = self._login
        client.connect(
            self._host,
            port=self._port,
            username=login.user,
            password=login.password.reveal() if login.password else None,
            pkey=key,
            allow_agent=login.use_agent,
            look_for_keys=False,
            sock=sock,
            timeout=timeout_s,
            banner_timeout=timeout_s,
            auth_timeout=timeout_s,
            channel_timeout=timeout_s,
        )

    def _client_that_knows_the_host(self) -> Any:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            client.load_host_keys(str(self._known_hosts))
        except (OSError, paramiko.hostkeys.InvalidHostKey) as error:
            raise InvalidDescriptionError(f"[ce] known_hosts = {str(self._known_hosts)!r} cannot be used") from error
        name = self._host if self._port == 22 else f"[{self._host}]:{self._port}"
        if client.get_host_keys().lookup(name) is None:
            raise HostKeyError(
                f"{self._known_hosts} has no key for {name}: an administrator must add the host's key to it"
            )
        return client

    def _key(self) -> Any:
        """The private key, or None where the login has none."""
        login = self._login
        if login.key_file is not None:
            try:
                text = read_private(login.key_file).decode("ascii")
            except (CredentialError, UnicodeDecodeError) as error:
                raise CECredentialError(f"the private key file for {self._where} cannot be used: {error}") from error
        elif login.private_key is not None:
            text = login.private_key.reveal()
        else:
            return None
        passphrase = login.passphrase.reveal() if login.passphrase else None
        for kind in _KEYS:
            with suppress(paramiko.SSHException, ValueError, IndexError, struct.error):
                return kind.from_private_key(io.StringIO(text), password=passphrase)
        raise CECredentialError(
            f"the private key for {self._where} cannot be used: it must be an Ed25519, ECDSA or RSA key in OpenSSH's "
            "or PEM format, with its passphrase if it has one"
        )

    # --- one command ---------------------------------------------------------------------------------------

    @contextmanager
    def _session(self, client: Any) -> Iterator[Any]:
        """One channel, closed at the end. A refusal is paramiko's ``ChannelException``."""
        transport = client.get_transport()
        if transport is None:
            raise _BrokenBeforeError(f"{self._where} was closed before the command was sent")
        try:
            with self._opening:  # paramiko keeps one reason for all refusals of a connection
                channel = transport.open_session()
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, OSError, EOFError) as error:
            client.close()
            raise _BrokenBeforeError(f"{self._where} broke off before the command was sent: {error}") from error
        with closing(channel):
            yield channel

    def _converse(self, channel: Any, line: str, stdin: bytes) -> Completed:
        try:
            channel.exec_command(line)
            sender = threading.Thread(target=_send, args=(channel, stdin), daemon=True)
            sender.start()
            stdout, stderr = self._read(channel)
            code = channel.recv_exit_status()
            sender.join(1.0)
            channel.close()  # ends a sender whose peer is gone
            sender.join()
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise AnswerLostError(f"{self._where} broke off after the command was sent: {error}") from error
        if code == -1:
            raise AnswerLostError(f"{self._where} gave no exit code: timed out, broke off, or was killed there")
        return Completed(code, stdout, stderr)

    def _read(self, channel: Any) -> tuple[bytes, bytes]:
        out, err = bytearray(), bytearray()
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        while True:
            poll.poll()  # the deadline closes the channel, and that wakes it
            ended = channel.eof_received or channel.closed
            if channel.recv_ready():
                out += channel.recv(_CHUNK)
            elif channel.recv_stderr_ready():
                err += channel.recv_stderr(_CHUNK)
            elif ended:
                return bytes(out), bytes(err)
            if len(out) + len(err) > self._max_output_bytes:
                raise AnswerLostError(f"{self._where} wrote more than {self._max_output_bytes} bytes and was cut off")


def _is_alive(client: Any) -> bool:
    transport = client.get_transport()  # None once the client was closed
    return transport is not None and transport.is_active()


@contextmanager
def _deadline(end: float, client: Any) -> Iterator[None]:
    """Close the connection when the time is over.

    paramiko waits without a limit in places, such as for the answer to "exec"; closing ends every wait. A host that
    lets one command run into its limit may be gone for the others too, and they would lose their answers anyhow.
    """
    timer = threading.Timer(max(0.0, end - time.monotonic()), client.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _send(channel: Any, stdin: bytes) -> None:
    """Everything the command may read. How it ends is seen by who reads the answer."""
    with suppress(OSError, EOFError, paramiko.SSHException):
        channel.sendall(stdin)
        channel.shutdown_write()
