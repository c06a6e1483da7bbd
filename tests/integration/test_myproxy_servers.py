"""One behaviour over two servers: Debian's myproxy-server and ours, seen through our client."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from support.myproxy_server import ServerProcess, start_debian, start_ours
from support.pki import Pki, pki

from airpanda.core.clock import utcnow
from airpanda.core.errors import CredentialError, RequestError
from airpanda.core.secret import Secret
from airpanda.myproxy import errors, policy
from airpanda.myproxy.client import MyProxyClient
from airpanda.myproxy.staging import StagedCredential, stage, unstage
from airpanda.myproxy.values import Policies
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

__all__ = ["pki"]
pytestmark = pytest.mark.integration
HOUR = timedelta(hours=1)
PASSPHRASE = Secret("correct horse")


@pytest.fixture(scope="module", params=["debian", "ours"])
def server(request: pytest.FixtureRequest, pki: Pki) -> Iterator[ServerProcess]:
    with {"debian": start_debian, "ours": start_ours}[request.param](pki) as running:
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A credential name of the test's own: the server is shared."""
    return f"{abs(hash(request.node.nodeid)):032x}"


@pytest.fixture
def alice(server: ServerProcess) -> MyProxyClient:
    return server.client("alice")


@pytest.fixture
def staged(server: ServerProcess, alice: MyProxyClient, pki: Pki) -> StagedCredential:
    assert alice.credential is not None
    return stage(alice, alice.credential, retriever_dn=pki.dn("pilot"), lifetime=12 * HOUR)


def _get(client: MyProxyClient, staged: StagedCredential, passphrase: Secret[str] | None = None) -> ProxyCredential:
    secret = staged.passphrase if passphrase is None else passphrase
    return client.get(staged.username, secret, cred_name=staged.cred_name, lifetime=HOUR)


class TestTheft:
    """What a thief of one thing gets: nothing."""

    def test_the_pilots_certificate_alone(self, server: ServerProcess, staged: StagedCredential) -> None:
        pilot = server.client("pilot")
        with pytest.raises(errors.MyProxyRefusedError):
            _get(pilot, staged, Secret(""))
        with pytest.raises(errors.WrongPassphraseError):
            _get(pilot, staged, Secret("a guess"))
        with pytest.raises(errors.MyProxyRefusedError):
            pilot.retrieve(staged.username, Secret("a guess"), cred_name=staged.cred_name)
        assert pilot.info(staged.username) == ()

    def test_the_pilots_certificate_with_an_old_proxy_of_the_owner(
        self, server: ServerProcess, staged: StagedCredential
    ) -> None:
        pilot = server.client("pilot")
        old = _get(pilot, staged)
        with pytest.raises(errors.MyProxyRefusedError):
            pilot.get(staged.username, cred_name=staged.cred_name, lifetime=HOUR, renew=old)

    @pytest.mark.parametrize("thief", ["pilot2", "bob", "alice"])
    def test_name_and_passphrase_with_another_dn(
        self, server: ServerProcess, staged: StagedCredential, thief: str
    ) -> None:
        with pytest.raises(errors.PolicyDeniedError) as caught:
            _get(server.client(thief), staged)
        assert caught.value.policy == "authorized_retrievers"

    def test_name_and_passphrase_anonymously(self, server: ServerProcess, staged: StagedCredential) -> None:
        with pytest.raises(errors.PolicyDeniedError) as caught:
            _get(server.client(), staged)
        assert caught.value.policy == "authorized_retrievers"

    def test_the_passphrase_of_another_job(
        self, server: ServerProcess, staged: StagedCredential, alice: MyProxyClient, pki: Pki
    ) -> None:
        assert alice.credential is not None
        other = stage(alice, alice.credential, retriever_dn=pki.dn("pilot"), lifetime=HOUR)
        with pytest.raises(errors.WrongPassphraseError):
            _get(server.client("pilot"), staged, other.passphrase)

    def test_the_stored_key_itself(self, server: ServerProcess, staged: StagedCredential) -> None:
        for user in ("pilot", "alice", "bob", None):
            with pytest.raises(errors.PolicyDeniedError):
                server.client(user).retrieve(staged.username, staged.passphrase, cred_name=staged.cred_name)

    def test_others_can_neither_destroy_nor_overwrite(
        self, server: ServerProcess, staged: StagedCredential, pki: Pki
    ) -> None:
        bob = server.client("bob")
        assert bob.credential is not None
        own = create_proxy(bob.credential, lifetime=HOUR, now=utcnow())
        with pytest.raises(errors.NotOwnerError):
            bob.destroy(staged.username, cred_name=staged.cred_name)
        with pytest.raises(errors.NotOwnerError):
            bob.store(staged.username, own, PASSPHRASE, cred_name=staged.cred_name, retrieval_lifetime=HOUR)
        with pytest.raises(errors.NotOwnerError):
            bob.change_passphrase(staged.username, staged.passphrase, PASSPHRASE, cred_name=staged.cred_name)
        assert _get(server.client("pilot"), staged).identity == pki.dn("alice")


def test_staging_and_retrieval(server: ServerProcess, staged: StagedCredential, alice: MyProxyClient, pki: Pki) -> None:
    got = server.client("pilot").get(
        staged.username, staged.passphrase, cred_name=staged.cred_name, lifetime=HOUR, owner_dn=pki.dn("alice")
    )
    assert (got.identity, got.is_proxy, got.is_limited) == (pki.dn("alice"), True, False)
    assert abs(got.not_after - utcnow() - HOUR) < timedelta(minutes=2)
    assert staged.username == pki.dn("alice")
    info = alice.info_of(staged.username, staged.cred_name)
    assert info.policies == Policies(retriever=policy.exactly(pki.dn("pilot")))
    assert abs(info.not_after - staged.expires_at) < timedelta(seconds=2)
    unstage(alice, staged.username, staged.cred_name)
    with pytest.raises(errors.CredentialMissingError):
        unstage(alice, staged.username, staged.cred_name)
    with pytest.raises(errors.CredentialMissingError):
        _get(server.client("pilot"), staged)


def test_each_retrieval_has_a_key_of_its_own(server: ServerProcess, staged: StagedCredential) -> None:
    pilot = server.client("pilot")
    serials = {_get(pilot, staged).certificate.serial_number for _ in range(3)}
    assert len(serials) == 3


def test_retrieval_by_a_proxy_of_the_pilot(server: ServerProcess, staged: StagedCredential, pki: Pki) -> None:
    pilot = create_proxy(ProxyCredential.from_files(*pki.user("pilot")), lifetime=HOUR, now=utcnow())
    assert _get(server.client(credential=pilot), staged).identity == pki.dn("alice")
    limited = create_proxy(pilot, lifetime=HOUR, now=utcnow(), limited=True)
    assert _get(server.client(credential=limited), staged).is_limited


@pytest.mark.parametrize("retriever", ["Robot: a/b + c", "Robot (x) [y] {z} | ^$ *? \\ .", 'Jürgen O\'N "q"'])
def test_odd_retrievers_are_matched_exactly(
    server: ServerProcess, alice: MyProxyClient, pki: Pki, retriever: str
) -> None:
    assert alice.credential is not None
    odd = pki.user_named(retriever)
    dn = odd.identity
    staged = stage(alice, alice.credential, retriever_dn=dn, lifetime=HOUR)
    assert _get(server.client(credential=odd), staged).identity == pki.dn("alice")
    with pytest.raises(errors.PolicyDeniedError):
        _get(server.client("pilot"), staged)


def test_a_limited_proxy_stays_limited(server: ServerProcess, alice: MyProxyClient, pki: Pki) -> None:
    assert alice.credential is not None
    limited = create_proxy(alice.credential, lifetime=2 * HOUR, now=utcnow(), limited=True)
    staged = stage(alice, limited, retriever_dn=pki.dn("pilot"), lifetime=HOUR)
    assert _get(server.client("pilot"), staged).is_limited


def test_what_is_left_of_the_lifetime_is_all_there_is(server: ServerProcess, alice: MyProxyClient, pki: Pki) -> None:
    assert alice.credential is not None
    staged = stage(alice, alice.credential, retriever_dn=pki.dn("pilot"), lifetime=HOUR / 2)
    pilot = server.client("pilot")
    assert _get(pilot, staged).not_after <= staged.expires_at
    with pytest.raises(errors.UnfitCredentialError, match="must stage a longer one"):
        pilot.get(
            staged.username, staged.passphrase, cred_name=staged.cred_name, lifetime=HOUR, min_lifetime=HOUR * 0.9
        )


def test_the_wrong_owner_is_noticed(server: ServerProcess, staged: StagedCredential, pki: Pki) -> None:
    with pytest.raises(errors.UnfitCredentialError, match="Alice Example's, not"):
        server.client("pilot").get(
            staged.username, staged.passphrase, cred_name=staged.cred_name, lifetime=HOUR, owner_dn=pki.dn("bob")
        )


def test_put_get_change_destroy(server: ServerProcess, alice: MyProxyClient, pki: Pki, name: str) -> None:
    alice.put("alice", PASSPHRASE, cred_name=name, lifetime=12 * HOUR, retrieval_lifetime=HOUR, description="a test")
    info = alice.info_of("alice", name)
    assert (info.owner, info.description) == (pki.dn("alice"), "a test")
    anonymous = server.client()
    got = anonymous.get("alice", PASSPHRASE, cred_name=name, lifetime=24 * HOUR)
    assert got.identity == pki.dn("alice")
    assert got.not_after - utcnow() <= HOUR + timedelta(minutes=1)
    alice.change_passphrase("alice", PASSPHRASE, Secret("battery staple"), cred_name=name)
    with pytest.raises(errors.WrongPassphraseError):
        anonymous.get("alice", PASSPHRASE, cred_name=name, lifetime=HOUR)
    with pytest.raises(errors.WrongPassphraseError):
        alice.change_passphrase("alice", PASSPHRASE, Secret("battery staple"), cred_name=name)
    assert anonymous.get("alice", Secret("battery staple"), cred_name=name, lifetime=HOUR).is_proxy
    alice.destroy("alice", cred_name=name)
    with pytest.raises(errors.CredentialMissingError):
        alice.info_of("alice", name)


def test_the_unnamed_default_and_several_names(server: ServerProcess, alice: MyProxyClient) -> None:
    for name in (None, "aa", "bb"):
        alice.put("several", PASSPHRASE, cred_name=name, lifetime=HOUR)
    assert sorted(info.cred_name for info in alice.info("several")) == ["", "aa", "bb"]
    assert server.client("bob").info("several") == ()
    for name in (None, "aa", "bb"):
        alice.destroy("several", cred_name=name)
    assert alice.info("several") == ()


def test_renewal_needs_an_old_proxy_of_the_same_owner(
    server: ServerProcess, alice: MyProxyClient, pki: Pki, name: str
) -> None:
    policies = Policies(renewer=policy.exactly(pki.dn("renewer")))
    alice.put("alice", cred_name=name, lifetime=12 * HOUR, policies=policies)
    old = create_proxy(ProxyCredential.from_files(*pki.user("alice")), lifetime=HOUR, now=utcnow())
    bobs = create_proxy(ProxyCredential.from_files(*pki.user("bob")), lifetime=HOUR, now=utcnow())
    forged = ProxyCredential(bobs.certificate, bobs.private_key, old.certificates)
    renewer = server.client("renewer")
    with pytest.raises(errors.PassphraseNeededError, match="old proxy is needed"):
        renewer.get("alice", cred_name=name, lifetime=HOUR)
    for unfit in (bobs, forged):
        with pytest.raises(CredentialError):
            renewer.get("alice", cred_name=name, lifetime=HOUR, renew=unfit)
    with pytest.raises(errors.MyProxyRefusedError):
        server.client("pilot").get("alice", cred_name=name, lifetime=HOUR, renew=old)
    with pytest.raises(errors.MyProxyRefusedError):
        server.client().get("alice", cred_name=name, lifetime=HOUR, renew=old)
    assert renewer.get("alice", cred_name=name, lifetime=HOUR, renew=old).identity == pki.dn("alice")


def test_trusted_retrieval_is_for_the_named_one_only(
    server: ServerProcess, alice: MyProxyClient, pki: Pki, name: str
) -> None:
    policies = Policies(trusted_retriever=policy.exactly(pki.dn("pilot")))
    alice.put("alice", cred_name=name, lifetime=12 * HOUR, policies=policies)
    assert server.client("pilot").get("alice", cred_name=name, lifetime=HOUR).identity == pki.dn("alice")
    for user in ("pilot2", "bob", None):
        for passphrase in (Secret(""), PASSPHRASE):
            with pytest.raises(errors.MyProxyRefusedError):
                server.client(user).get("alice", passphrase, cred_name=name, lifetime=HOUR)


def test_store_and_retrieve_the_credential_itself(
    server: ServerProcess, alice: MyProxyClient, pki: Pki, name: str
) -> None:
    source = ProxyCredential.from_files(*pki.user("alice"))
    policies = Policies(key_retriever=policy.exactly(pki.dn("bob")))
    alice.store("alice", source, PASSPHRASE, cred_name=name, retrieval_lifetime=HOUR, policies=policies)
    bob = server.client("bob")
    got = bob.retrieve("alice", PASSPHRASE, cred_name=name, owner_dn=pki.dn("alice"))
    assert got.private_key.private_numbers() == source.private_key.private_numbers()
    with pytest.raises(errors.WrongPassphraseError):
        bob.retrieve("alice", Secret("wrong words"), cred_name=name)
    with pytest.raises(errors.PolicyDeniedError, match="key_retrievers"):
        server.client("carol").retrieve("alice", PASSPHRASE, cred_name=name)


def test_nobody_stores_for_others(server: ServerProcess, alice: MyProxyClient, pki: Pki, name: str) -> None:
    bobs = create_proxy(ProxyCredential.from_files(*pki.user("bob")), lifetime=HOUR, now=utcnow())
    with pytest.raises(errors.MyProxyRefusedError):
        server.client().store("alice", bobs, PASSPHRASE, cred_name=name, retrieval_lifetime=HOUR)
    with pytest.raises(errors.MyProxyRefusedError):
        server.client().put("alice", PASSPHRASE, cred_name=name, lifetime=HOUR, source=bobs)
    assert alice.info("nobody") == ()


def test_trust_roots(server: ServerProcess, pki: Pki) -> None:
    files = server.client().trustroots().files
    assert {path.name: path.read_bytes() for path in pki.ca_dir.iterdir()} == dict(files)


def test_sixteen_at_once(server: ServerProcess, staged: StagedCredential, pki: Pki) -> None:
    pilot = server.client("pilot")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(_get(pilot, staged).identity)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [pki.dn("alice")] * 16


@pytest.mark.parametrize("username", ["Jürgen/日本", "a" * 1000, '/O=Test Grid/CN=it\'s "quoted" (x)'])
def test_odd_user_names(server: ServerProcess, alice: MyProxyClient, username: str) -> None:
    alice.put(username, PASSPHRASE, lifetime=HOUR)
    assert server.client().get(username, PASSPHRASE, lifetime=HOUR).is_proxy
    alice.destroy(username)
    assert alice.info(username) == ()


@pytest.mark.parametrize("value", ["a\nCOMMAND=3", "a\0b", "x\rCRED_NAME=y", "PASSPHRASE=x", "command=3", "\x7f"])
def test_values_that_could_be_protocol_never_leave(alice: MyProxyClient, value: str) -> None:
    for call in (
        lambda: alice.info(value),
        lambda: alice.destroy("alice", cred_name=value),
        lambda: alice.get(value, PASSPHRASE, lifetime=HOUR),
        lambda: alice.put("alice", Secret(f"passphrase {value}"), lifetime=HOUR),
        lambda: alice.put("alice", PASSPHRASE, lifetime=HOUR, policies=Policies(retriever=value)),
        lambda: alice.put("alice", PASSPHRASE, lifetime=HOUR, description=value),
    ):
        with pytest.raises(RequestError) as caught:
            call()
        assert value not in str(caught.value)
    assert alice.info("alice-never-used") == ()


def test_an_expired_owner_stages_nothing(server: ServerProcess, pki: Pki) -> None:
    expired = ProxyCredential.from_files(*pki.expired_user("expired"))
    client = server.client(credential=expired)
    with pytest.raises(CredentialError, match="has expired; its owner must renew it"):
        stage(client, expired, retriever_dn=pki.dn("pilot"), lifetime=HOUR)
    with pytest.raises(CredentialError, match="has expired; its owner must renew it"):
        client.info("expired")


def test_another_owners_proxy_is_not_left_behind(server: ServerProcess, alice: MyProxyClient, pki: Pki) -> None:
    bobs = ProxyCredential.from_files(*pki.user("bob"))
    before = _files(server)
    with pytest.raises(RequestError, match="must act as"):
        stage(alice, bobs, retriever_dn=pki.dn("pilot"), lifetime=HOUR)
    assert _files(server) == before


def test_a_lost_policy_is_noticed_and_undone(
    server: ServerProcess, alice: MyProxyClient, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert alice.credential is not None
    before = _files(server)
    store = alice.store

    def forgetful(username: str, source: ProxyCredential, secret: Secret[str], **options: object) -> None:
        options.pop("policies")
        store(username, source, secret, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(alice, "store", forgetful)
    with pytest.raises(errors.UnfitCredentialError, match="did not keep the policies"):
        stage(alice, alice.credential, retriever_dn=pki.dn("pilot"), lifetime=HOUR)
    assert _files(server) == before


def test_what_lies_on_the_disk(server: ServerProcess, staged: StagedCredential) -> None:
    files = [path for path in server.storage.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert staged.passphrase.reveal().encode() not in path.read_bytes()
    assert b"PRIVATE KEY" not in b"".join(
        path.read_bytes().replace(b"ENCRYPTED PRIVATE KEY", b"") for path in files if staged.cred_name in path.name
    )


def test_the_host_name_must_fit(server: ServerProcess, pki: Pki) -> None:
    by_address = MyProxyClient("127.0.0.2", server.port, ca_dir=pki.ca_dir)
    with pytest.raises((errors.UntrustedServerError, errors.UnreachableError)):
        by_address.info("alice")
    expected = server.client("alice", expect_dn=pki.dn("host"))
    assert isinstance(expected.info("alice"), tuple)
    with pytest.raises(errors.UntrustedServerError, match="not /O=Other"):
        server.client("alice", expect_dn="/O=Other/CN=server").info("alice")


def test_a_server_of_another_ca_is_refused(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Pki(tmp_path_factory.mktemp("other") / "pki")
    with pytest.raises(errors.UntrustedServerError, match="the site must act"):
        MyProxyClient("localhost", server.port, ca_dir=other.ca_dir).info("alice")


def test_a_client_of_another_ca_is_refused(
    server: ServerProcess, pki: Pki, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Pki(tmp_path_factory.mktemp("other") / "pki")
    stranger = ProxyCredential.from_files(*other.user("alice"))
    with pytest.raises((errors.MyProxyRefusedError, errors.MyProxyServiceError)):
        server.client(credential=stranger).put("alice", PASSPHRASE, lifetime=HOUR)
    assert pki.dn("alice") == other.dn("alice")


def _files(server: ServerProcess) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in server.storage.iterdir()}


def test_our_store_never_names_files_after_clients(pki: Pki) -> None:
    with start_ours(pki) as running:
        client = running.client("alice")
        client.put("../../escape", PASSPHRASE, cred_name="../x", lifetime=HOUR)
        (path,) = running.storage.iterdir()
        assert path.name.replace("-", "").removesuffix(".json").isalnum()
        document = json.loads(path.read_text())
        assert "ENCRYPTED PRIVATE KEY" in document["pem"]
        assert os.path.dirname(path) == str(running.storage)
