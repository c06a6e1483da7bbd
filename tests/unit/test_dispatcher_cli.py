"""``python -m airpanda``: secrets go to 0600 files, never to the screen; nothing is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.canary import Canaries

from airpanda.__main__ import main
from airpanda.core.clock import utcnow
from airpanda.core.secret import Secret
from airpanda.dispatcher.tokens import Issuer


@pytest.fixture
def key(tmp_path: Path) -> Path:
    assert main(["token", "key", str(tmp_path / "key")]) == 0
    return tmp_path / "key"


def client(key: Path, *more: str) -> list[str]:
    return ["token", "client", "airflow", "--signing-key", str(key), "--output", str(key.parent / "token"), *more]


def test_an_existing_key_stays(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = key.read_bytes()
    assert main(["token", "key", str(key)]) == 1
    assert key.read_bytes() == before
    assert "exists" in capsys.readouterr().err


def test_a_token_is_in_its_file_and_says_what_it_is_for(
    key: Path, canaries: Canaries, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(client(key, "--owners", "alice,bob", "--queues", "*", "--days", "1")) == 0
    token = key.parent / "token"
    assert token.stat().st_mode & 0o777 == key.stat().st_mode & 0o777 == 0o600
    identity = Issuer(key).verify_client(Secret(token.read_text()), utcnow())
    assert (identity.name, identity.owners, identity.queues) == ("airflow", frozenset({"alice", "bob"}), None)
    canaries.remember(token.read_text(), "client token")
    assert not canaries.shown_in("".join(capsys.readouterr()))


@pytest.mark.parametrize("asked", [True, False])
def test_a_token_may_send_pilots_only_where_asked(key: Path, asked: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(client(key, "--owners", "*", "--queues", "*", *["--pilots"][: int(asked)])) == 0
    assert Issuer(key).verify_client(Secret((key.parent / "token").read_text()), utcnow()).pilots is asked
    assert ("to send pilots" in capsys.readouterr().out) is asked


def test_a_token_may_be_for_looking_only(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(client(key, "--owners", "*", "--queues", "*", "--read-only")) == 0
    assert ", to look only" in capsys.readouterr().out
    identity = Issuer(key).verify_client(Secret((key.parent / "token").read_text()), utcnow())
    assert (identity.read_only, identity.pilots) == (True, False)


def test_a_token_may_be_for_some_verbs(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(client(key, "--owners", "alice", "--queues", "*", "--verbs", "submit, kill,read")) == 0
    assert ", for the verbs kill, read, submit, valid until" in capsys.readouterr().out
    identity = Issuer(key).verify_client(Secret((key.parent / "token").read_text()), utcnow())
    assert (identity.verbs, identity.pilots) == (frozenset({"submit", "kill", "read"}), False)


def test_an_existing_token_file_stays(key: Path) -> None:
    (key.parent / "token").write_text("mine")
    assert main(client(key, "--owners", "*", "--queues", "*")) == 1
    assert (key.parent / "token").read_text() == "mine"


def test_a_key_that_others_can_read_is_refused(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key.chmod(0o644)
    assert main(client(key, "--owners", "*", "--queues", "*")) == 1
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--owners", "a,,b"],
        ["--owners", "a", "--days", "0"],
        ["--owners", "a"],
        ["--owners", "a", "--queues", "*", "--verbs", "kill,everything"],
        ["--owners", "a", "--queues", "*", "--verbs", ""],
        ["--owners", "a", "--queues", "*", "--verbs", "kill", "--pilots"],
        ["--owners", "a", "--queues", "*", "--verbs", "kill", "--read-only"],
    ],
)
def test_a_wrong_command_line_is_explained(key: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(client(key, *wrong))
    assert left.value.code == 2


def test_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "token key|client" in capsys.readouterr().out
    assert main([]) == main(["nonsense"]) == 2
