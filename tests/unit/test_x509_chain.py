"""Chain verification: the bad chains first, each with the rule it breaks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from support import chains
from support.chains import (
    DAY,
    EEC_EXTENSIONS,
    NOW,
    Made,
    ca,
    crl,
    ec_key,
    eec,
    key,
    make,
    name,
    proxy,
    proxy_info,
    trust,
)

from airpanda.core.errors import CredentialError
from airpanda.x509.certificates import LIMITED
from airpanda.x509.chain import ChainPolicy, VerifiedChain, verify_chain
from airpanda.x509.errors import ChainError, MalformedChainError, RefusedChainError
from airpanda.x509.proxy import create_proxy
from airpanda.x509.trust import TrustedCa, TrustStore


def _verify(*made: Made, store: TrustStore | None = None, **policy: object) -> VerifiedChain:
    certs = [item.cert for item in made]
    return verify_chain(certs, trust=store or trust(), now=NOW, policy=ChainPolicy(**policy))  # type: ignore[arg-type]


def _user(**changes: object) -> Made:
    arguments: dict[str, object] = {"extensions": EEC_EXTENSIONS, **changes}
    return make(name("Alice Example"), key("Alice Example"), ca(), **arguments)  # type: ignore[arg-type]


def _usage(**wanted: bool) -> x509.KeyUsage:
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
    fields = [*names.split(), "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{field: wanted.get(field, False) for field in fields})


def _ca_issues_proxy() -> list[Made]:
    return [proxy(ca()), ca()]


def _ca_issues_proxy_under_user() -> list[Made]:
    return [proxy(ca()), eec()]


def _wrong_issuer_name() -> list[Made]:
    return [proxy(eec(), issuer_name=name("Bob Example")), eec()]


def _name_not_extended() -> list[Made]:
    return [make(name("Bob Example", "77"), key("x"), eec(), extensions=[proxy_info()]), eec()]


def _two_names_added() -> list[Made]:
    return [make(name("Alice Example", "1", "2"), key("x"), eec(), extensions=[proxy_info()]), eec()]


def _same_name() -> list[Made]:
    return [make(name("Alice Example"), key("x"), eec(), extensions=[proxy_info()]), eec()]


def _signed_by_another() -> list[Made]:
    return [proxy(Made(eec().cert, key("another"))), eec()]


def _foreign_in_the_middle() -> list[Made]:
    return [proxy(eec()), eec("Bob Example"), eec()]


def _foreign_at_the_end() -> list[Made]:
    return [proxy(eec()), eec(), eec("Bob Example")]


def _foreign_ca_at_the_end() -> list[Made]:
    return [proxy(eec()), eec(), make(name("Other CA"), key("x"), extensions=chains.CA_EXTENSIONS)]


def _proxy_after_end_entity() -> list[Made]:
    return [eec(), proxy(eec())]


def _only_proxies() -> list[Made]:
    first = proxy(eec())
    return [proxy(first, "78"), first]


def _twice() -> list[Made]:
    return [proxy(eec()), eec(), eec()]


def _path_length() -> list[Made]:
    first = proxy(eec(), extensions=[proxy_info(path_length=0)])
    return [proxy(first, "78"), first, eec()]


def _not_critical() -> list[Made]:
    return [proxy(eec(), extensions=[proxy_info(critical=False)]), eec()]


def _proxy_is_ca() -> list[Made]:
    return [proxy(eec(), extensions=[proxy_info(), (x509.BasicConstraints(True, None), True)]), eec()]


def _alternative_name() -> list[Made]:
    names = x509.SubjectAlternativeName([x509.DNSName("bob.example")])
    return [proxy(eec(), extensions=[proxy_info(), (names, False)]), eec()]


def _issuer_may_not_sign() -> list[Made]:
    user = _user(extensions=[*EEC_EXTENSIONS, (_usage(key_encipherment=True), True)])
    return [proxy(user), user]


def _ca_as_end_entity() -> list[Made]:
    return [ca()]


def _broken_info() -> list[Made]:
    broken = x509.UnrecognizedExtension(chains.PROXY_CERT_INFO, b"\x30\x03\x02\x01")
    return [proxy(eec(), extensions=[(broken, True)]), eec()]


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (list, "empty"),
        (_ca_issues_proxy, "ca-issues-proxy"),
        (_ca_issues_proxy_under_user, "issuer-name"),
        (_wrong_issuer_name, "issuer-name"),
        (_name_not_extended, "proxy-name"),
        (_two_names_added, "proxy-name"),
        (_same_name, "proxy-name"),
        (_signed_by_another, "signature"),
        (_foreign_in_the_middle, "foreign"),
        (_foreign_at_the_end, "foreign"),
        (_foreign_ca_at_the_end, "issuer-name"),
        (_proxy_after_end_entity, "foreign"),
        (_only_proxies, "no-end-entity"),
        (_twice, "cycle"),
        (_path_length, "path-length"),
        (_not_critical, "not-critical"),
        (_proxy_is_ca, "proxy-is-ca"),
        (_alternative_name, "alternative-name"),
        (_issuer_may_not_sign, "issuer-usage"),
        (_ca_as_end_entity, "ca-as-end-entity"),
        (_broken_info, "encoding"),
    ],
)
def test_what_is_no_proxy_chain(build: Callable[[], list[Made]], rule: str) -> None:
    with pytest.raises(MalformedChainError) as caught:
        _verify(*build())
    assert caught.value.rule == rule
    assert isinstance(caught.value, CredentialError)


def _expired_leaf() -> list[Made]:
    return [proxy(eec(), end=NOW - timedelta(seconds=1)), eec()]


def _expired_middle() -> list[Made]:
    first = proxy(eec(), end=NOW - timedelta(seconds=1))
    return [proxy(first, "78"), first, eec()]


def _expired_user() -> list[Made]:
    user = _user(end=NOW - timedelta(seconds=1))
    return [proxy(user), user]


def _not_yet_valid() -> list[Made]:
    return [proxy(eec(), start=NOW + timedelta(seconds=1)), eec()]


def _rogue_ca_same_name() -> list[Made]:
    rogue = make(name("Test CA"), key("rogue"), extensions=chains.CA_EXTENSIONS)
    return [make(name("Alice Example"), key("x"), rogue, extensions=EEC_EXTENSIONS), rogue]


def _unknown_ca() -> list[Made]:
    other = make(name("Other CA"), key("rogue"), extensions=chains.CA_EXTENSIONS)
    return [make(name("Alice Example"), key("x"), other, extensions=EEC_EXTENSIONS), other]


def _outside_signing_policy() -> list[Made]:
    return [make(name("Alice", organisation="Elsewhere"), key("x"), ca(), extensions=EEC_EXTENSIONS)]


def _weak_key() -> list[Made]:
    return [proxy(eec(), own=key("weak", 1024)), eec()]


def _weak_user_key() -> list[Made]:
    user = make(name("Alice Example"), key("weak", 1024), ca(), extensions=EEC_EXTENSIONS)
    return [proxy(user), user]


def _sha1() -> list[Made]:
    return [chains.resigned_with_sha1(proxy(eec()), eec()), eec()]


def _sha224() -> list[Made]:
    return [_user(digest=hashes.SHA224())]


def _independent() -> list[Made]:
    # SEQUENCE { SEQUENCE { OID id-ppl-independent } }
    info = x509.UnrecognizedExtension(chains.PROXY_CERT_INFO, bytes.fromhex("300c300a06082b06010505071502"))
    return [proxy(eec(), extensions=[(info, True)]), eec()]


def _critical_unknown() -> list[Made]:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    return [proxy(eec(), extensions=[proxy_info(), (unknown, True)]), eec()]


def _critical_info_like_extension_on_user() -> list[Made]:
    constraints = x509.NameConstraints([x509.DNSName("example")], None)
    return [_user(extensions=[*EEC_EXTENSIONS, (constraints, True)])]


def _ambiguous_name() -> list[Made]:
    return [make(name("x/CN=Bob Example"), key("x"), ca(), extensions=EEC_EXTENSIONS)]


def _server_only() -> list[Made]:
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return [_user(extensions=[*EEC_EXTENSIONS, (usage, False)])]


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (_expired_leaf, "expired"),
        (_expired_middle, "expired"),
        (_expired_user, "expired"),
        (_not_yet_valid, "not-yet-valid"),
        (_rogue_ca_same_name, "untrusted"),
        (_unknown_ca, "untrusted"),
        (_outside_signing_policy, "signing-policy"),
        (_weak_key, "weak-key"),
        (_weak_user_key, "weak-key"),
        (_sha1, "weak-digest"),
        (_sha224, "weak-digest"),
        (_independent, "policy-language"),
        (_critical_unknown, "critical-extension"),
        (_critical_info_like_extension_on_user, "critical-extension"),
        (_ambiguous_name, "ambiguous-name"),
        (_server_only, "usage"),
    ],
)
def test_what_is_a_chain_but_not_accepted(build: Callable[[], list[Made]], rule: str) -> None:
    with pytest.raises(RefusedChainError) as caught:
        _verify(*build())
    assert caught.value.rule == rule


def test_the_error_names_the_certificate() -> None:
    with pytest.raises(RefusedChainError, match="has expired") as caught:
        _verify(*_expired_middle())
    assert caught.value.subject == "/O=Test Grid/CN=Alice Example/CN=77"


def test_too_long() -> None:
    links = [eec()]
    for number in range(16):
        links.insert(0, proxy(links[0], str(number), own=ec_key(str(number))))
    with pytest.raises(MalformedChainError) as caught:
        _verify(*links)
    assert caught.value.rule == "too-long"
    assert _verify(*links[1:]).identity_dn == "/O=Test Grid/CN=Alice Example"


@pytest.mark.parametrize(
    ("lists", "rule"),
    [
        ([crl(eec().cert.serial_number)], "revoked"),
        ([crl(), crl(eec().cert.serial_number)], "revoked"),
        ([crl(eec().cert.serial_number, end=NOW - timedelta(hours=1))], "revoked"),
        ([crl(end=NOW - timedelta(seconds=1))], "crl-expired"),
        ([crl(start=NOW + timedelta(seconds=1))], "crl-expired"),
    ],
)
def test_revocation(lists: list[x509.CertificateRevocationList], rule: str) -> None:
    with pytest.raises(RefusedChainError) as caught:
        _verify(proxy(eec()), eec(), store=trust(*lists))
    assert caught.value.rule == rule


def test_a_missing_list_is_the_sites_choice() -> None:
    assert _verify(eec()).ca == ca().cert
    assert _verify(eec(), store=trust(crl()), require_crl=True).ca == ca().cert
    with pytest.raises(RefusedChainError) as caught:
        _verify(eec(), require_crl=True)
    assert caught.value.rule == "crl-missing"


def test_a_list_by_another_key_is_no_list() -> None:
    forged = crl(eec().cert.serial_number, signer=key("rogue"))
    assert _verify(eec(), store=trust(forged)).identity_dn == "/O=Test Grid/CN=Alice Example"
    with pytest.raises(ChainError, match="no revocation list"):
        _verify(eec(), store=trust(forged), require_crl=True)


def test_a_missing_signing_policy_is_refused_unless_the_site_says_otherwise() -> None:
    store = TrustStore([TrustedCa(ca().cert)])
    with pytest.raises(RefusedChainError, match="no signing policy"):
        _verify(eec(), store=store)
    assert _verify(eec(), store=store, require_signing_policy=False).ca == ca().cert


def test_limited_then_full_stays_limited_and_may_be_refused() -> None:
    limited = proxy(eec(), extensions=[proxy_info(LIMITED)])
    full = proxy(limited, "78")
    assert _verify(full, limited, eec()).limited
    with pytest.raises(RefusedChainError) as caught:
        _verify(full, limited, eec(), allow_limited=False)
    assert caught.value.rule == "limited"


def test_a_proxy_that_lives_too_long() -> None:
    with pytest.raises(RefusedChainError, match="over 1 day"):
        _verify(proxy(eec()), eec(), max_proxy_lifetime=DAY)
    assert _verify(eec(), max_proxy_lifetime=DAY).proxies == ()


@pytest.mark.parametrize("sent", [[], [ca()]])
def test_a_good_chain(sent: list[Made]) -> None:
    first = proxy(eec(), end=NOW + DAY)
    leaf = proxy(first, "78", own=ec_key("leaf"))
    verified = _verify(leaf, first, eec(), *sent)
    assert verified.identity_dn == "/O=Test Grid/CN=Alice Example"
    assert verified.proxies == (leaf.cert, first.cert)
    assert (verified.limited, verified.not_after) == (False, NOW + DAY)
    assert verified.serial == eec().cert.serial_number
    assert verified.fingerprint == leaf.cert.fingerprint(hashes.SHA256()).hex()


def test_intermediate_ca_path_length_and_revocation() -> None:
    inner = make(name("Inner CA"), key("inner"), ca(), extensions=chains.CA_EXTENSIONS)
    user = make(name("Alice Example"), key("Alice Example"), inner, extensions=EEC_EXTENSIONS)
    inner_policy = chains.policy(ca_dn="/O=Test Grid/CN=Inner CA")
    outer = TrustedCa(ca().cert, (chains.policy(),))
    store = TrustStore([outer, TrustedCa(inner.cert, (inner_policy,))])
    assert _verify(proxy(user), user, store=store).ca == inner.cert
    with pytest.raises(RefusedChainError, match="not trusted"):
        _verify(proxy(user), user, inner, store=trust())
    revoking = TrustStore([outer, TrustedCa(inner.cert, (inner_policy,))], [crl(inner.cert.serial_number)])
    with pytest.raises(RefusedChainError, match="revoked"):
        _verify(user, store=revoking)
    short = make(name("Test CA"), key("ca"), extensions=[(x509.BasicConstraints(True, 0), True)])
    strict = TrustStore([TrustedCa(short.cert, (chains.policy(),)), TrustedCa(inner.cert, (inner_policy,))])
    with pytest.raises(RefusedChainError, match="more CAs"):
        _verify(user, store=strict)


def test_a_renewed_ca_with_the_same_name_is_found_by_its_key() -> None:
    older = make(name("Test CA"), key("older ca"), extensions=chains.CA_EXTENSIONS)
    assert _verify(eec(), store=trust(cas=[older, ca()])).ca == ca().cert


def test_what_this_room_makes_it_accepts() -> None:
    first = create_proxy(chains.credential(eec()), lifetime=DAY, now=NOW)
    second = create_proxy(first, lifetime=DAY, now=NOW, limited=True, path_length=0)
    verified = verify_chain(second.certificates, trust=trust(), now=NOW)
    assert (verified.identity_dn, verified.limited) == ("/O=Test Grid/CN=Alice Example", True)
