"""The login of a computing element comes from a Connection, and shows itself nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseHook
from support.airflow_connection import connection
from support.canary import Canaries

from airpanda.computing.elements import CECredentialError
from airpanda.hooks.computing import ssh_login


def login(monkeypatch: pytest.MonkeyPatch, **values: Any) -> Any:
    there = connection(**{"login": "pilot", "password": None} | values)
    monkeypatch.setattr(BaseHook, "get_connection", classmethod(lambda _cls, _id: there))
    return ssh_login("site")


def test_a_connection_with_nothing_to_log_in_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CECredentialError, match="'pilot' has no key"):
        login(monkeypatch)


def test_passwords_and_keys_are_secrets(monkeypatch: pytest.MonkeyPatch, canaries: Canaries) -> None:
    password, key, phrase = (canaries.plant(kind) for kind in ("password", "key", "phrase"))
    extra = {"private_key": key, "private_key_passphrase": phrase, "key_file": "/k"}
    found = login(monkeypatch, password=password, extra_dejson=extra)
    assert (found.user, found.key_file, found.use_agent) == ("pilot", Path("/k"), False)
    assert [s.reveal() for s in (found.password, found.private_key, found.passphrase)] == [password, key, phrase]
    assert not canaries.shown_in(repr(found))


@pytest.mark.parametrize(("word", "uses"), [(True, True), ("true", True), ("false", False)])
def test_the_agent_is_used_only_when_asked_for(monkeypatch: pytest.MonkeyPatch, word: object, uses: bool) -> None:
    extra = {"allow_agent": word, "key_file": "/k"}
    assert login(monkeypatch, extra_dejson=extra).use_agent is uses
