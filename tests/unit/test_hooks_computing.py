"""The login of a computing element comes from a Connection, and shows itself nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseHook
from support.airflow_connection import connection
from support.canary import Canaries
from support.pki import Pki, pki

from airpanda.computing.arc import ArcElement
from airpanda.computing.elements import CECredentialError
from airpanda.computing.gram import GramElement
from airpanda.computing.kube import KubernetesElement
from airpanda.computing.queues import load_queue
from airpanda.computing.schedd import ScheddElement
from airpanda.core.errors import ConfigurationError, CredentialError
from airpanda.hooks.computing import element_of, ssh_login

__all__ = ["pki"]
ROOT = Path(__file__).resolve().parents[2]


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


def arc_element(monkeypatch: pytest.MonkeyPatch, **extra: str) -> Any:
    there = connection(extra_dejson=extra)
    monkeypatch.setattr(BaseHook, "get_connection", classmethod(lambda _cls, _id: there))
    queue = load_queue(ROOT / "include/queues/EXAMPLE_ARC.toml")
    return element_of(queue, ROOT / "include/pilot/wrapper.sh")


def test_an_arc_ce_is_met_as_the_robot_that_the_connection_names(monkeypatch: pytest.MonkeyPatch, pki: Pki) -> None:
    certificate, key = map(str, pki.user("pilot"))
    element = arc_element(monkeypatch, certificate_file=certificate, key_file=key)
    assert isinstance(element, ArcElement)
    assert element._rest.credential.identity == pki.dn("pilot")


def element_with(monkeypatch: pytest.MonkeyPatch, example: str, **values: Any) -> Any:
    there = connection(**values)
    monkeypatch.setattr(BaseHook, "get_connection", classmethod(lambda _cls, _id: there))
    return element_of(load_queue(ROOT / f"include/queues/{example}.toml"), ROOT / "include/pilot/wrapper.sh")


def test_a_gram_ce_is_met_as_the_robot_too(monkeypatch: pytest.MonkeyPatch, pki: Pki) -> None:
    certificate, key = map(str, pki.user("pilot"))
    extra = {"certificate_file": certificate, "key_file": key}
    element = element_with(monkeypatch, "EXAMPLE_GRAM", extra_dejson=extra)
    assert isinstance(element, GramElement)
    assert element._gram.credential.identity == pki.dn("pilot")


def test_a_cluster_and_a_schedd_take_the_connections_password_as_token(
    monkeypatch: pytest.MonkeyPatch, canaries: Canaries
) -> None:
    token = canaries.plant("token")
    element = element_with(monkeypatch, "EXAMPLE_KUBERNETES", password=token)
    assert isinstance(element, KubernetesElement)
    assert element._api._token.reveal() == token
    schedd = element_with(monkeypatch, "EXAMPLE_SCHEDD", password=token)
    assert isinstance(schedd, ScheddElement)
    assert schedd._token.reveal() == token
    for example in ("KUBERNETES", "SCHEDD"):
        with pytest.raises(CECredentialError, match=f"'example_{example.lower()}'"):
            element_with(monkeypatch, f"EXAMPLE_{example}", password=None)


def test_a_robot_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, pki: Pki, tmp_path: Path) -> None:
    certificate, key = pki.user("pilot")
    shown = tmp_path / "key"
    shown.write_bytes(key.read_bytes())
    shown.chmod(0o644)
    with pytest.raises(ConfigurationError, match="'example_arc' must name"):
        arc_element(monkeypatch)
    with pytest.raises(CredentialError, match="none cannot be opened"):
        arc_element(monkeypatch, proxy_file=str(tmp_path / "none"))
    with pytest.raises(CredentialError, match="chmod 600"):
        arc_element(monkeypatch, certificate_file=str(certificate), key_file=str(shown))
