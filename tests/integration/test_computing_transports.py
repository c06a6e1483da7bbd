"""Programs here and over SSH: hostile words arrive whole, nothing waits for ever, and no host is trusted unseen."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.canary import Canaries
from support.elements import until
from support.launcher import running_site
from support.need import need_root
from support.sshd import Proxy, Sshd, running_sshd

from airpanda.computing.elements import CECredentialError, CEUnavailableError, InvalidDescriptionError
from airpanda.computing.ssh import HostKeyError, SshLogin, SshTransport
from airpanda.computing.transports import AnswerLostError, Completed, LocalTransport, Transport, command_line
from airpanda.core.secret import Secret

pytestmark = pytest.mark.integration

HOSTILE = [
    "",
    " ",
    "a b",
    "'",
    '"',
    "'\"'\"'",
    "$HOME",
    "$(touch hit)",
    "`touch hit`",
    "; touch hit #",
    "&& touch hit",
    "| touch hit",
    "> hit",
    "*",
    "~",
    "-n",
    "--",
    "\\",
    "\\'",
    "line\nbreak",
    "tab\there",
    "!!",
    "\x01\x7f",
    "Grüße ☃",
    "a" * 50_000,
]


@pytest.fixture(scope="module", name="sshd")
def module_sshd() -> Iterator[Sshd]:
    need_root()
    with running_site() as site, tempfile.TemporaryDirectory() as scratch, running_sshd(site.node, Path(scratch)) as it:
        yield it


@contextmanager
def ssh(sshd: Sshd, login: SshLogin | None = None, **options: object) -> Iterator[SshTransport]:
    arguments: dict[str, object] = {"port": sshd.port, "known_hosts": sshd.known_hosts, **options}
    transport = SshTransport("127.0.0.1", login or sshd.login, **arguments)  # type: ignore[arg-type]
    try:
        yield transport
    finally:
        transport.close()


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.root)])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    if request.param == "local":
        yield LocalTransport(max_output_bytes=4_000_000)
        return
    with ssh(request.getfixturevalue("sshd"), max_output_bytes=4_000_000) as it:
        yield it


def in_time(limit_s: float, call: Callable[[], Completed]) -> Completed:
    begin = time.monotonic()
    try:
        return call()
    finally:
        assert time.monotonic() - begin < limit_s


# --- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_real_shell_reads_exactly_the_words(shell: str, tmp_path: Path) -> None:
    line = command_line(["printf", "%s\\0", *HOSTILE])
    done = subprocess.run([shell, "-c", line], capture_output=True, cwd=tmp_path, timeout=60, check=True)
    assert done.stdout.decode().split("\0")[:-1] == HOSTILE
    assert list(tmp_path.iterdir()) == []


def test_hostile_words_arrive_whole(transport: Transport) -> None:
    done = transport.run(["printf", "%s\\0", *HOSTILE], timeout_s=60)
    assert done.stdout.decode().split("\0")[:-1] == HOSTILE


def test_what_cannot_be_a_command_is_refused(transport: Transport) -> None:
    for argv in ([], ["printf", "a\0b"]):
        with pytest.raises(InvalidDescriptionError):
            transport.run(argv, timeout_s=30)


# --- bytes, codes, bounds ------------------------------------------------------------------------------------


def test_bytes_and_exit_codes(transport: Transport) -> None:
    done = transport.run(["sh", "-c", "cat; echo no >&2; exit 3"], bytes(range(256)), timeout_s=60)
    assert done == Completed(3, bytes(range(256)), b"no\n")


def test_more_than_any_window_or_pipe_in_both_directions(transport: Transport) -> None:
    data = bytes(range(256)) * 12_000
    assert transport.run(["cat"], data, timeout_s=60).stdout == data


def test_a_command_that_reads_nothing_ends_in_its_own_way(transport: Transport) -> None:
    assert transport.run(["sh", "-c", "exit 4"], bytes(8_000_000), timeout_s=60).exit_code == 4


def test_too_much_output_is_cut_off(transport: Transport) -> None:
    with pytest.raises(AnswerLostError, match="more than 4000000"):
        transport.run(["yes"], timeout_s=60)
    with pytest.raises(AnswerLostError, match="more than 4000000"):
        transport.run(["sh", "-c", "yes >&2"], timeout_s=60)
    assert transport.run(["echo", "on"], timeout_s=60).stdout == b"on\n"


def test_a_command_without_end_is_lost_in_time_and_the_next_one_works(transport: Transport) -> None:
    with pytest.raises(AnswerLostError):
        in_time(25, lambda: transport.run(["sleep", "30"], timeout_s=0.5))
    assert transport.run(["echo", "on"], timeout_s=60).stdout == b"on\n"


def test_a_program_that_is_not_there(sshd: Sshd) -> None:
    with pytest.raises(CEUnavailableError, match="cannot be started"):
        LocalTransport(["/nowhere/enter"]).run(["true"], timeout_s=30)
    with ssh(sshd) as transport:
        assert transport.run(["/nowhere/x"], timeout_s=30).exit_code == 127


def test_nothing_of_our_environment_goes_along(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRPANDA_TEST_VARIABLE", "here")
    assert b"AIRPANDA_TEST_VARIABLE" not in transport.run(["env"], timeout_s=30).stdout


# --- the connection ------------------------------------------------------------------------------------------


@pytest.mark.root
def test_one_connection_serves_all(sshd: Sshd) -> None:
    proxy = Proxy(sshd.port, lambda _: True)
    try:
        with known_also_as(sshd, proxy.port), ssh(sshd, port=proxy.port) as transport:
            codes: list[int] = []
            run = lambda: codes.append(transport.run(["true"], timeout_s=30).exit_code)  # noqa: E731
            threads = [threading.Thread(target=run) for _ in range(30)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert codes == [0] * 30
            assert proxy.connects == 1
    finally:
        proxy.close()


@pytest.mark.root
def test_a_host_that_resets_one_in_three_connects(sshd: Sshd) -> None:
    proxy = Proxy(sshd.port, lambda number: number % 3 == 2)
    try:
        with known_also_as(sshd, proxy.port):
            for _ in range(3):
                with ssh(sshd, port=proxy.port) as transport:
                    assert transport.run(["echo", "on"], timeout_s=60).stdout == b"on\n"
        assert proxy.connects == 9
    finally:
        proxy.close()


@pytest.mark.root
def test_a_host_that_resets_every_connect_is_unavailable_after_a_bounded_number(sshd: Sshd) -> None:
    proxy = Proxy(sshd.port, lambda _: False)
    try:
        with known_also_as(sshd, proxy.port), ssh(sshd, port=proxy.port, connect_timeout_s=3) as transport:
            with pytest.raises(CEUnavailableError, match="cannot be reached") as caught:
                in_time(60, lambda: transport.run(["true"], timeout_s=60))
            assert caught.value.transient
        assert 3 <= proxy.connects <= 6
    finally:
        proxy.close()


@pytest.mark.root
def test_a_host_that_hangs_is_unavailable_in_time(sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = int(silent.getsockname()[1])
        with (
            known_also_as(sshd, port),
            ssh(sshd, port=port, connect_timeout_s=1) as transport,
            pytest.raises(CEUnavailableError),
        ):
            in_time(60, lambda: transport.run(["true"], timeout_s=60))


@pytest.mark.root
@pytest.mark.parametrize("said", [10, 500, 1500, 1800])
def test_a_host_that_falls_silent_during_the_login_is_unavailable_in_time(sshd: Sshd, said: int) -> None:
    """In its banner, in its offer of ciphers, in the exchange of keys, and before it answers for the login."""
    proxy = Proxy(sshd.port, lambda _: True)
    proxy.mute_after = said
    try:
        with (
            known_also_as(sshd, proxy.port),
            ssh(sshd, port=proxy.port, connect_timeout_s=2) as transport,
            pytest.raises(CEUnavailableError),
        ):
            in_time(60, lambda: transport.run(["true"], timeout_s=60))
    finally:
        proxy.close()


@pytest.mark.root
@pytest.mark.parametrize("said", [1300, 1500, 1800])
def test_a_host_that_hangs_up_during_the_login_has_refused_nobody(sshd: Sshd, said: int) -> None:
    proxy = Proxy(sshd.port, lambda _: True)
    proxy.hang_up_after = said
    try:
        with (
            known_also_as(sshd, proxy.port),
            ssh(sshd, port=proxy.port, connect_timeout_s=2) as transport,
            pytest.raises(CEUnavailableError),
        ):
            in_time(60, lambda: transport.run(["true"], timeout_s=60))
    finally:
        proxy.close()


@pytest.mark.root
def test_a_host_that_stands_still_loses_an_answer_at_most_and_is_there_again_after_it(sshd: Sshd) -> None:
    with ssh(sshd, connect_timeout_s=4) as transport, ssh(sshd, connect_timeout_s=4) as newcomer:
        assert transport.run(["echo", "on"], timeout_s=60).stdout == b"on\n"
        with sshd.hanging():
            with pytest.raises(CEUnavailableError):
                in_time(60, lambda: transport.run(["true"], timeout_s=1))
            with pytest.raises(CEUnavailableError):
                in_time(60, lambda: newcomer.run(["true"], timeout_s=60))
        for one in (transport, newcomer):
            assert one.run(["echo", "on"], timeout_s=60).stdout == b"on\n"


@pytest.mark.root
def test_a_broken_connection_is_replaced(sshd: Sshd) -> None:
    with ssh(sshd) as transport:
        for _ in range(3):
            assert transport.run(["echo", "on"], timeout_s=60).stdout == b"on\n"
            sshd.cut()


@pytest.mark.root
def test_a_connection_that_breaks_after_the_command_was_sent_loses_the_answer(sshd: Sshd) -> None:
    with ssh(sshd) as transport:
        transport.run(["true"], timeout_s=60)  # connected: the next command is sent at once
        timer = threading.Timer(1.0, sshd.cut)
        timer.start()
        with pytest.raises(AnswerLostError):
            in_time(40, lambda: transport.run(["sleep", "60"], timeout_s=60))
        timer.join()


@pytest.mark.root
def test_a_host_that_allows_one_session_serves_many_threads(sshd: Sshd) -> None:
    sshd.stop()
    sshd.start(max_sessions=1)
    said: list[bytes] = []
    try:
        with ssh(sshd) as transport:
            run = lambda: said.append(transport.run(["sh", "-c", "sleep 0.03; echo on"], timeout_s=30).stdout)  # noqa: E731
            threads = [threading.Thread(target=run) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert transport.budget.limit == 1
    finally:
        sshd.stop()
        sshd.start()
    assert said == [b"on\n"] * 12


@pytest.mark.root
def test_a_host_that_allows_no_session_is_unavailable(sshd: Sshd) -> None:
    sshd.stop()
    sshd.start(max_sessions=0)
    try:
        with ssh(sshd, patience_s=0.3) as transport, pytest.raises(CEUnavailableError, match="MaxSessions"):
            in_time(60, lambda: transport.run(["true"], timeout_s=60))
    finally:
        sshd.stop()
        sshd.start()


# --- who is who ----------------------------------------------------------------------------------------------


@contextmanager
def known_also_as(sshd: Sshd, port: int) -> Iterator[None]:
    before = sshd.known_hosts.read_text()
    sshd.known_hosts.write_text(before + before.replace(f":{sshd.port} ", f":{port} "))
    try:
        yield
    finally:
        sshd.known_hosts.write_text(before)


@pytest.mark.root
def test_a_changed_host_key_ends_it_even_for_a_connection_that_was_good(sshd: Sshd) -> None:
    with ssh(sshd) as transport:
        transport.run(["true"], timeout_s=60)
        sshd.stop()
        sshd.new_host_key()
        sshd.start()
        for _ in range(2):
            with pytest.raises(HostKeyError, match="another host key") as caught:
                transport.run(["true"], timeout_s=60)
            assert not caught.value.transient
        sshd.remember()  # the administrator has looked and corrected the file
        transport.run(["true"], timeout_s=60)


@pytest.mark.root
def test_a_host_without_a_known_key_is_not_even_asked(sshd: Sshd, tmp_path: Path) -> None:
    proxy = Proxy(sshd.port, lambda _: True)
    try:
        with ssh(sshd, port=proxy.port) as transport, pytest.raises(HostKeyError, match="has no key"):
            transport.run(["true"], timeout_s=60)
        assert proxy.connects == 0
    finally:
        proxy.close()
    missing = ssh(sshd, known_hosts=tmp_path / "missing")
    with missing as transport, pytest.raises(InvalidDescriptionError, match="known_hosts"):
        transport.run(["true"], timeout_s=60)


@pytest.mark.root
def test_a_login_that_the_host_refuses(sshd: Sshd, tmp_path: Path, canaries: Canaries) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(other)], check=True, timeout=20)
    password = Secret(canaries.plant("password"))
    wrong = [
        SshLogin("pilot", private_key=Secret(other.read_text())),
        SshLogin("pilot", key_file=other),
        SshLogin("pilot", password=password),
        replace(sshd.login, user="root"),
        SshLogin("pilot", private_key=Secret("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")),
        SshLogin("pilot", private_key=Secret("")),
    ]
    for login in wrong:
        with ssh(sshd, login) as transport, pytest.raises(CECredentialError) as caught:
            transport.run(["true"], timeout_s=60)
        assert not caught.value.transient
    with pytest.raises(CECredentialError, match="no key, no password"):
        SshLogin("pilot")


@pytest.mark.root
def test_keys_by_text_by_file_and_with_a_passphrase(sshd: Sshd, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.write_bytes(sshd.key.read_bytes())
    locked.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(locked)], check=True, timeout=20)
    phrase = Secret("open sesame")
    for login in (
        sshd.login,
        SshLogin("pilot", key_file=sshd.key),
        SshLogin("pilot", private_key=Secret(locked.read_text()), passphrase=phrase),
        SshLogin("pilot", key_file=locked, passphrase=phrase),
    ):
        with ssh(sshd, login) as transport:
            assert transport.run(["id", "-un"], timeout_s=60).stdout == b"pilot\n"
    for login in (
        SshLogin("pilot", private_key=Secret(locked.read_text())),
        SshLogin("pilot", private_key=Secret(locked.read_text()), passphrase=Secret("wrong")),
        SshLogin("pilot", key_file=locked, passphrase=Secret("wrong")),
    ):
        with ssh(sshd, login) as transport, pytest.raises(CECredentialError):
            transport.run(["true"], timeout_s=60)


@pytest.mark.root
def test_a_key_file_that_others_can_read_is_not_used(sshd: Sshd, tmp_path: Path) -> None:
    shown, link = tmp_path / "shown", tmp_path / "link"
    shown.write_bytes(sshd.key.read_bytes())
    shown.chmod(0o640)
    link.symlink_to(sshd.key)
    for path, why in ((shown, "chmod 600"), (link, "cannot be opened"), (tmp_path / "none", "No such file")):
        with ssh(sshd, SshLogin("pilot", key_file=path)) as transport, pytest.raises(CECredentialError, match=why):
            transport.run(["true"], timeout_s=20)


@pytest.mark.root
def test_a_password(sshd: Sshd, canaries: Canaries) -> None:
    password = Secret(canaries.plant("password"))
    sshd.set_password(password)
    sshd.stop()
    sshd.start(password_too=True)
    try:
        with ssh(sshd, SshLogin("pilot", password=password)) as transport:
            assert transport.run(["id", "-un"], timeout_s=20).stdout == b"pilot\n"
        with ssh(sshd, SshLogin("pilot", password=Secret("another"))) as transport, pytest.raises(CECredentialError):
            transport.run(["true"], timeout_s=20)
    finally:
        sshd.stop()
        sshd.start()


@pytest.mark.root
def test_an_agent_that_is_asked_for(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that has no key, or is not there, is a matter of the login, not of the host."""
    place = tmp_path / "agent"
    monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
    login = SshLogin("pilot", use_agent=True)
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL) as agent:
        try:
            until(place.exists)
            with ssh(sshd, login) as transport, pytest.raises(CECredentialError):
                transport.run(["true"], timeout_s=20)
            subprocess.run(["ssh-add", "-q", str(sshd.key)], check=True, timeout=20)
            with ssh(sshd, login) as transport:
                assert transport.run(["id", "-un"], timeout_s=20).stdout == b"pilot\n"
        finally:
            agent.terminate()
    monkeypatch.delenv("SSH_AUTH_SOCK")
    with ssh(sshd, login) as transport, pytest.raises(CECredentialError):
        transport.run(["true"], timeout_s=20)


@pytest.mark.root
def test_keys_and_agent_of_whoever_runs_this_take_no_part(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right key lies where OpenSSH would find it, and an agent socket is set: neither is touched."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_ed25519").write_bytes(sshd.key.read_bytes())
    monkeypatch.setenv("HOME", str(home))
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent"))
        agent.listen()
        agent.setblocking(False)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        with ssh(sshd, SshLogin("pilot", password=Secret("no"))) as transport, pytest.raises(CECredentialError):
            transport.run(["true"], timeout_s=60)
        with pytest.raises(BlockingIOError):
            agent.accept()
