"""Staging against Debian's real myproxy-server: what is left there, what travels, and what a failure leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import BaseHook
from support.airflow_connection import connection
from support.canary import Canaries
from support.http_stub import Answer, Stub, http_stub
from support.myproxy_server import ServerProcess, start_debian
from support.pki import Pki

from airpanda.core.clock import from_wire, to_wire, utcnow
from airpanda.core.errors import ConfigurationError, CredentialError, RequestError, ServiceError
from airpanda.core.secret import Secret
from airpanda.hooks.myproxy import MyProxyHook
from airpanda.hooks.panda import PandaHook
from airpanda.operators.proxies import MyProxyDestroyOperator, MyProxyStageOperator
from airpanda_demo.voms import VO, attribute_proxy, make_vomsdir

pytestmark = pytest.mark.integration
TI = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=None, try_number=1, id="u")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[ServerProcess]:
    with start_debian(pki) as running:
        yield running


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, server: ServerProcess) -> dict[str, Any]:
    """The Connections of a site, by id; a test may change them."""
    cert, key = server.pki.user("alice")
    there = {
        "owner_alice": connection(extra_dejson={"certificate_file": str(cert), "key_file": str(key)}),
        "myproxy_default": connection(
            host="localhost",
            port=server.port,
            extra_dejson={"ca_dir": str(server.pki.ca_dir), "retriever_dn": server.pki.dn("pilot")},
        ),
    }
    for hook in (BaseHook, PandaHook, MyProxyHook):
        monkeypatch.setattr(hook, "get_connection", classmethod(lambda _cls, name: there[name]))
    return there


def view(state: str = "staged", **values: Any) -> Answer:
    body = {
        "credential_id": 3, "owner": "alice", "owner_dn": "/O=Test Grid/CN=Alice Example", "fqans": [],
        "server": "localhost:7512", "username": "u", "cred_name": "0" * 32, "expires_at": "2030-01-01T00:00:00Z",
        "scope": "task", "state": state,
    }  # fmt: skip
    return Answer(200, json.dumps(body | values).encode())


def stage(connections: dict[str, Any], *answers: Answer) -> tuple[Any, Stub]:
    """With nothing staged by earlier tries, unless the answers begin with a list."""
    if not answers[0].body.startswith(b"["):
        answers = (Answer(200, b"[]"), *answers)
    with http_stub(*answers) as stub:
        connections["panda_default"] = connection(port=stub.port)
        operator = MyProxyStageOperator(task_id="t", payload_owner="alice", lifetime=timedelta(hours=5))
        return operator.execute({"ti": TI}), stub


def registration(stub: Stub) -> dict[str, Any]:
    (sent,) = [json.loads(seen.body) for seen in stub.seen if seen.path == "/v1/creds/register"]
    return sent


def stored(server: ServerProcess) -> set[str]:
    return {info.cred_name for info in server.client("alice").info(server.pki.dn("alice"))}


def test_only_the_named_pilot_with_the_passphrase_gets_the_staged_proxy(
    server: ServerProcess, connections: dict[str, Any], canaries: Canaries
) -> None:
    result, stub = stage(connections, view())
    sent = registration(stub)
    secret: Secret[str] = Secret(sent["passphrase"])
    got = server.client("pilot").get(sent["username"], secret, cred_name=sent["cred_name"], lifetime=timedelta(hours=1))
    assert got.identity == sent["owner_dn"] == server.pki.dn("alice")
    for thief, passphrase in (("pilot2", secret), ("pilot", Secret("x" * 43)), (None, secret), ("bob", secret)):
        with pytest.raises(CredentialError):
            server.client(thief).get(
                sent["username"], passphrase, cred_name=sent["cred_name"], lifetime=timedelta(hours=1)
            )
    assert not canaries.shown_in(json.dumps(result))
    assert set(result) == {"credential_id", "owner", "owner_dn", "expires_at"}


@pytest.mark.parametrize(("status", "kind"), [(503, ServiceError), (422, RequestError)])
def test_nothing_stays_behind_when_it_cannot_be_registered(
    server: ServerProcess, connections: dict[str, Any], monkeypatch: pytest.MonkeyPatch, status: int, kind: type
) -> None:
    monkeypatch.setattr("airpanda.hooks.panda.time.sleep", lambda _: None)
    before = stored(server)
    with pytest.raises(kind):
        stage(connections, Answer(status, b"{}"))
    assert stored(server) == before


def listed(sent: dict[str, Any], **changes: Any) -> Answer:
    """The dispatcher's list, with what an earlier try has staged."""
    names = ("owner_dn", "server", "username", "cred_name", "expires_at", "scope", "fqans")
    body = json.loads(view().body) | {name: sent[name] for name in names} | changes
    return Answer(200, json.dumps([body]).encode())


def test_a_retry_uses_what_an_earlier_try_has_staged(server: ServerProcess, connections: dict[str, Any]) -> None:
    _, stub = stage(connections, view())
    there = stored(server)
    result, again = stage(connections, listed(registration(stub)))
    assert [seen.path for seen in again.seen] == ["/v1/creds/staged"]
    assert json.loads(again.seen[0].body)["ti"]["task_id"] == "t"
    assert result["credential_id"] == 3
    assert stored(server) == there


@pytest.mark.parametrize("why", ["short", "scope", "fqans", "end", "policy"])
def test_a_retry_replaces_what_is_not_good_any_more(
    server: ServerProcess, connections: dict[str, Any], why: str
) -> None:
    _, stub = stage(connections, view())
    old = registration(stub)
    changes: dict[str, dict[str, Any]] = {
        "short": {"expires_at": to_wire(utcnow() + timedelta(hours=1))},
        "scope": {"scope": "user"},
        "fqans": {"fqans": ["/other"]},
        "end": {"expires_at": "2030-01-01T00:00:00Z"},  # not what MyProxy says
        "policy": {},
    }
    if why == "policy":
        connections["myproxy_default"].extra_dejson["retriever_dn"] = server.pki.dn("pilot2")
    before = stored(server)
    _, again = stage(connections, listed(old, **changes[why]), view(), view("revoked"), view("destroyed"))
    paths = [seen.path.rsplit("/", 1)[1] for seen in again.seen]
    assert paths == ["staged", "register", "revoke", "destroyed"]
    assert stored(server) == before - {old["cred_name"]} | {registration(again)["cred_name"]}


def test_a_retry_stages_again_what_myproxy_has_lost(server: ServerProcess, connections: dict[str, Any]) -> None:
    _, stub = stage(connections, view())
    old = registration(stub)
    server.client("alice").destroy(old["username"], cred_name=old["cred_name"])
    _, again = stage(connections, listed(old), view(), view("revoked"), view("destroyed"))
    assert registration(again)["cred_name"] in stored(server)


@pytest.mark.parametrize(("queues", "names"), [(["A", "B"], ["A", "B"]), ("DEMO", ["DEMO"])])
def test_the_registration_consents_for_this_client_and_the_queues_given(
    server: ServerProcess, connections: dict[str, Any], queues: Any, names: list[str]
) -> None:
    _, stub = stage(connections, view())
    assert registration(stub)["consent"] == {"queues": ["*"], "until": None}
    with http_stub(Answer(200, b"[]"), view()) as stub:
        connections["panda_default"] = connection(port=stub.port)
        MyProxyStageOperator(task_id="t", payload_owner="alice", panda_queues=queues).execute({"ti": TI})
    assert registration(stub)["consent"]["queues"] == names


@pytest.mark.parametrize(
    "wrong", [{"panda_queues": []}, {"panda_queues": [""]}, {"panda_queues": "no/queue"}, {"payload_owner": ""}]
)
def test_what_is_no_name_stages_nothing(
    server: ServerProcess, connections: dict[str, Any], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MyProxyStageOperator(**{"task_id": "t", "payload_owner": "alice", **wrong})
    before = stored(server)
    operator = MyProxyStageOperator(task_id="t", payload_owner="alice")
    for name, rendered in wrong.items():
        setattr(operator, name, rendered)
    with http_stub(Answer(200, b"[]"), view()) as stub:
        connections["panda_default"] = connection(port=stub.port)
        with pytest.raises(ValueError, match=next(iter(wrong))):
            operator.execute({"ti": TI})
    assert (stub.seen, stored(server)) == ([], before)


def test_a_registration_that_cannot_be_leaves_nothing_staged(
    server: ServerProcess, connections: dict[str, Any]
) -> None:
    """The dispatcher's own limits, of which an operator knows nothing."""
    before = stored(server)
    many = ["DEMO"] * 1001
    with http_stub(Answer(200, b"[]"), view()) as stub:
        connections["panda_default"] = connection(port=stub.port)
        with pytest.raises(ValueError, match="queues"):
            MyProxyStageOperator(task_id="t", payload_owner="alice", panda_queues=many).execute({"ti": TI})
    assert [seen.path for seen in stub.seen] == ["/v1/creds/staged"]
    assert stored(server) == before


def test_a_revoked_certificate_stages_nothing(server: ServerProcess, connections: dict[str, Any]) -> None:
    cert, key = server.pki.user("carol")
    connections["owner_alice"] = connection(extra_dejson={"certificate_file": str(cert), "key_file": str(key)})
    server.pki.write_crl("carol")
    try:
        with pytest.raises(CredentialError, match="revoked"):
            stage(connections, view())
    finally:
        server.pki.remove_crl()


def test_destroying_twice_is_no_error(server: ServerProcess, connections: dict[str, Any]) -> None:
    _, stub = stage(connections, view())
    sent = registration(stub)
    there = {"username": sent["username"], "cred_name": sent["cred_name"]}
    operator = MyProxyDestroyOperator(task_id="d", credential={"credential_id": 3})
    ended = (view("revoked"), view("destroyed"))
    for answers in ((view(**there), *ended), (view(**there), *ended), (view("destroyed"),)):
        with http_stub(*answers) as dispatcher:
            connections["panda_default"] = connection(port=dispatcher.port)
            operator.execute({"ti": TI})
    assert sent["cred_name"] not in stored(server)


def test_verified_voms_attributes_are_registered_and_others_refused(
    server: ServerProcess, connections: dict[str, Any], tmp_path: Path
) -> None:
    server.pki.user("alice")
    fqans = [f"/{VO}/Role=production", f"/{VO}"]
    attribute_proxy(server.pki.demo, "alice", fqans, lifetime=timedelta(hours=9), now=utcnow()).write(tmp_path / "p")
    connections["owner_alice"] = connection(extra_dejson={"proxy_file": str(tmp_path / "p")})
    extra = connections["myproxy_default"].extra_dejson
    extra["vomsdir"] = str(make_vomsdir(server.pki.demo, tmp_path / "vomsdir"))
    _, stub = stage(connections, view())
    assert registration(stub)["fqans"] == fqans

    (tmp_path / "empty").mkdir()
    extra["vomsdir"] = str(tmp_path / "empty")
    with pytest.raises(CredentialError):
        stage(connections, view())


@pytest.mark.parametrize("extra", [{}, {"certificate_file": "/x"}])
def test_an_owner_without_certificate_is_named(connections: dict[str, Any], extra: dict[str, str]) -> None:
    connections["owner_alice"] = connection(extra_dejson=extra)
    with pytest.raises(ConfigurationError, match="owner_alice"):
        stage(connections, view())


@pytest.mark.parametrize("lacking", ["ca_dir", "retriever_dn"])
def test_a_repository_without_its_options_is_named(connections: dict[str, Any], lacking: str) -> None:
    del connections["myproxy_default"].extra_dejson[lacking]
    with pytest.raises(ConfigurationError, match="myproxy_default"):
        stage(connections, view())


def test_an_expired_certificate_stages_nothing(server: ServerProcess, connections: dict[str, Any]) -> None:
    cert, key = server.pki.expired_user("late")
    connections["owner_alice"] = connection(extra_dejson={"certificate_file": str(cert), "key_file": str(key)})
    with pytest.raises(CredentialError, match="expired"):
        stage(connections, view())


@pytest.mark.parametrize("off", [timedelta(hours=-1), timedelta(hours=1)])
def test_a_workers_clock_that_is_wrong_is_harmless_or_named(
    server: ServerProcess, connections: dict[str, Any], monkeypatch: pytest.MonkeyPatch, off: timedelta
) -> None:
    """A proxy made by a clock that is ahead is not valid yet; by one behind, it ends earlier."""
    for module in ("hooks.myproxy", "operators.staging", "myproxy.staging", "myproxy.client"):
        monkeypatch.setattr(f"airpanda.{module}.utcnow", lambda: utcnow() + off)
    before = stored(server)
    if off < timedelta(0):
        _, stub = stage(connections, view())
        assert from_wire(registration(stub)["expires_at"]) < utcnow() + timedelta(hours=4, minutes=1)
        return
    with pytest.raises(CredentialError, match="look at its CA, its revocation and the clock here"):
        stage(connections, view())
    assert stored(server) == before


def test_a_key_that_others_can_read_is_refused(
    server: ServerProcess, connections: dict[str, Any], tmp_path: Path
) -> None:
    cert, key = server.pki.user("alice")
    loose = tmp_path / "key"
    loose.write_bytes(key.read_bytes())
    os.chmod(loose, 0o644)
    connections["owner_alice"] = connection(extra_dejson={"certificate_file": str(cert), "key_file": str(loose)})
    with pytest.raises(CredentialError):
        stage(connections, view())
