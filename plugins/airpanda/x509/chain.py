"""Verification of proxy chains: RFC 3820 and RFC 5280, small and strict, because OpenSSL's view is not enough.

A server that accepts proxies over TLS gets a chain that the TLS library has checked in parts. This checks all
of it, the same way everywhere, and says which certificate breaks which rule. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Optional

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from airpanda.core.identity import MAX_DN_CHARS
from airpanda.core.records import dataclass
from airpanda.x509 import certificates as facts
from airpanda.x509 import der
from airpanda.x509.certificates import INHERIT_ALL, LIMITED, PROXY_CERT_INFO, ProxyCertInfo
from airpanda.x509.dn import ambiguous, raw_names, subject_dn
from airpanda.x509.errors import MalformedChainError, RefusedChainError
from airpanda.x509.trust import TrustedCa, TrustStore, crl_last_update, crl_next_update

_DIGESTS = frozenset({"sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512", "none"})
_KNOWN_CRITICAL = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
_CLIENT_USAGES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
_MAX_CAS = 8


@dataclass(frozen=True)
class ChainPolicy:
    """What a site decides about chains. The defaults are what a grid service wants.

    Attributes:
        max_certificates: longest chain looked at.
        allow_limited: whether a limited proxy may act here; a launcher says no.
        max_proxy_lifetime: longest validity of the leaf, where it is a proxy.
        require_crl: refuse where a CA has no revocation list. One that has expired is always refused.
        require_signing_policy: refuse CAs without a signing policy.
        require_client_usage: an end entity with extendedKeyUsage must have clientAuth in it.
    """

    max_certificates: int = 16
    allow_limited: bool = True
    max_proxy_lifetime: Optional[timedelta] = None
    require_crl: bool = False
    require_signing_policy: bool = True
    require_client_usage: bool = True


DEFAULT_POLICY = ChainPolicy()


@dataclass(frozen=True, eq=False)
class VerifiedChain:
    """A chain that has passed. ``identity_dn`` is whom it stands for.

    Attributes:
        identity_dn: the end entity's DN, one-line form.
        limited: whether any proxy of it is limited.
        not_after: when the first certificate of it expires.
        eec: the end-entity certificate.
        proxies: the proxies, leaf first; empty where the end entity itself acts.
        ca: the CA that issued the end entity.
        serial: the end entity's serial number, by which its CA would revoke it.
        fingerprint: SHA-256 of the leaf in lower-case hex; names this very credential.
    """

    identity_dn: str
    limited: bool
    not_after: datetime
    eec: x509.Certificate
    proxies: tuple[x509.Certificate, ...]
    ca: x509.Certificate
    serial: int
    fingerprint: str


def verify_chain(
    certs: Sequence[x509.Certificate], *, trust: TrustStore, now: datetime, policy: ChainPolicy = DEFAULT_POLICY
) -> VerifiedChain:
    """Verify a chain, leaf first: proxies, one end entity, then nothing or its CAs in order.

    CAs in the chain are checked and dropped: trust comes from ``trust`` alone.

    Raises:
        MalformedChainError: the certificates are no proxy chain.
        RefusedChainError: time, trust, revocation, strength or the policy forbid it.

    Source: RFC 3820, 3 and 4; RFC 5280, 6.1.
    """
    try:
        proxies, eec, sent_cas = _sort(certs, policy)
        _check_links([*proxies, eec, *sent_cas])
        infos = _check_proxies(proxies, eec)
        _check_end_entity(eec, trust, policy)
        cas = _issuers(eec, trust, policy)
        for certificate in (*proxies, eec, *cas):
            _check_fitness(certificate, now)
        _check_authorities(eec, cas, trust, now, policy)
    except ValueError as error:
        raise MalformedChainError("encoding", "", "a certificate of it cannot be read") from error
    limited = any(info.language == LIMITED for info in infos)
    _check_use(certs[0], limited, bool(proxies), policy)
    return VerifiedChain(
        identity_dn=subject_dn(eec),
        limited=limited,
        not_after=min(map(facts.not_after, (*proxies, eec, *cas))),
        eec=eec,
        proxies=tuple(proxies),
        ca=cas[0],
        serial=eec.serial_number,
        fingerprint=facts.fingerprint(certs[0]),
    )


def _sort(
    certs: Sequence[x509.Certificate], policy: ChainPolicy
) -> tuple[list[x509.Certificate], x509.Certificate, list[x509.Certificate]]:
    """Proxies, end entity, CAs: in this order and nothing else."""
    if not certs:
        raise MalformedChainError("empty", "", "there is no certificate")
    if len(certs) > policy.max_certificates:
        raise MalformedChainError("too-long", "", f"{len(certs)} certificates, over {policy.max_certificates}")
    if len(set(certs)) != len(certs):
        raise MalformedChainError("cycle", "", "a certificate is in it twice")
    count = 0
    while count < len(certs) and facts.proxy_cert_info(certs[count]) is not None:
        count += 1
    if count == len(certs):
        raise MalformedChainError("no-end-entity", "", "it ends before the end-entity certificate")
    for certificate in certs[count + 1 :]:
        if not facts.is_ca(certificate) or facts.proxy_cert_info(certificate) is not None:
            raise _malformed("foreign", certificate, "stands behind the end entity and is no CA")
    return list(certs[:count]), certs[count], list(certs[count + 1 :])


def _check_links(certs: Sequence[x509.Certificate]) -> None:
    """Each certificate is issued by the next: by name and by signature."""
    for child, issuer in zip(certs, certs[1:]):
        if raw_names(child)[0] != raw_names(issuer)[1]:
            raise _malformed("issuer-name", child, f"its issuer is not the next certificate, {subject_dn(issuer)}")
        if not facts.signed_by(child, issuer):
            raise _malformed("signature", child, f"its signature is not by {subject_dn(issuer)}")


def _check_proxies(proxies: Sequence[x509.Certificate], eec: x509.Certificate) -> list[ProxyCertInfo]:
    infos = []
    for depth, (proxy, issuer) in enumerate(zip(proxies, [*proxies[1:], eec])):
        if facts.is_ca(issuer):
            raise _malformed("ca-issues-proxy", proxy, "is a proxy issued by a CA")
        info = facts.proxy_cert_info(proxy)
        assert info is not None  # _sort has put it here for that
        _check_proxy(proxy, issuer, info)
        if info.path_length is not None and depth > info.path_length:
            raise _malformed("path-length", proxy, f"allows {info.path_length} proxies below it, and there are {depth}")
        infos.append(info)
    return infos


def _check_proxy(proxy: x509.Certificate, issuer: x509.Certificate, info: ProxyCertInfo) -> None:
    """Source: RFC 3820, 3.1-3.8."""
    if not _extends(raw_names(proxy)[1], raw_names(issuer)[1]):
        raise _malformed("proxy-name", proxy, "its subject is not its issuer's plus one common name")
    usage = facts.extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise _malformed("issuer-usage", issuer, "may not sign (keyUsage), yet issues a proxy")
    if facts.is_ca(proxy):
        raise _malformed("proxy-is-ca", proxy, "is a proxy that claims to be a CA")
    for extension in facts.extensions_of(proxy):
        if extension.oid in (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.ISSUER_ALTERNATIVE_NAME):
            raise _malformed("alternative-name", proxy, "is a proxy with an alternative name")
        if extension.oid == PROXY_CERT_INFO and not extension.critical:
            raise _malformed("not-critical", proxy, "its proxyCertInfo is not critical")
    if info.language not in (INHERIT_ALL, LIMITED) or info.has_policy:
        raise RefusedChainError("policy-language", subject_dn(proxy), f"its policy {info.language} is not supported")


def _check_end_entity(eec: x509.Certificate, trust: TrustStore, policy: ChainPolicy) -> None:
    issuer, subject = raw_names(eec)
    if facts.is_ca(eec) or trust.is_anchor(eec) or issuer == subject:
        raise _malformed("ca-as-end-entity", eec, "is a CA where the end entity belongs")
    if ambiguous(subject) or len(subject_dn(eec)) > MAX_DN_CHARS:
        raise RefusedChainError("ambiguous-name", subject_dn(eec)[:200], "its subject could be read as another name")
    usage = facts.extension(eec, x509.ExtendedKeyUsage)
    if policy.require_client_usage and usage is not None and not any(kind in usage for kind in _CLIENT_USAGES):
        raise RefusedChainError("usage", subject_dn(eec), "may not be used by clients (extendedKeyUsage)")


def _issuers(eec: x509.Certificate, trust: TrustStore, policy: ChainPolicy) -> list[x509.Certificate]:
    """The CAs up to a self-signed one, with each one's right to certify the one below."""
    cas: list[x509.Certificate] = []
    child = eec
    while not cas or raw_names(child)[0] != raw_names(child)[1]:
        ca = trust.issuer_of(child)
        if ca is None:
            named = trust.has_ca_named(raw_names(child)[0])
            why = "its signature is not by the trusted CA of that name" if named else "its CA is not trusted here"
            raise RefusedChainError("untrusted", subject_dn(child), why)
        if len(cas) == _MAX_CAS or ca.certificate in cas:
            raise MalformedChainError("cycle", subject_dn(child), "its CAs go in a circle or are too many")
        _check_signing_policy(ca, child, policy)
        cas.append(ca.certificate)
        child = ca.certificate
    return cas


def _check_signing_policy(ca: TrustedCa, child: x509.Certificate, policy: ChainPolicy) -> None:
    subject = subject_dn(child)
    if policy.require_signing_policy and not ca.policies:
        raise RefusedChainError("signing-policy", subject, f"the site has no signing policy for its CA {_name(ca)}")
    if not ca.may_certify(subject):
        raise RefusedChainError("signing-policy", subject, f"its CA {_name(ca)} may not certify this name")


def _check_fitness(certificate: x509.Certificate, now: datetime) -> None:
    """Time, strength, and no critical extension that nobody here understands."""
    subject = subject_dn(certificate)
    if now < facts.not_before(certificate):
        raise RefusedChainError("not-yet-valid", subject, f"is not valid before {facts.not_before(certificate):%F %T}Z")
    if now > facts.not_after(certificate):
        raise RefusedChainError("expired", subject, f"has expired at {facts.not_after(certificate):%F %T}Z")
    reason = facts.weakness(facts.public_key(certificate))
    if reason is not None:
        raise RefusedChainError("weak-key", subject, reason)
    issuer, own = raw_names(certificate)
    digest = facts.digest_of(certificate)
    if issuer != own and digest not in _DIGESTS:  # nobody relies on a trust anchor's own signature
        raise RefusedChainError("weak-digest", subject, f"is signed with {digest or 'an unknown algorithm'}")
    proxy = facts.proxy_cert_info(certificate) is not None
    for extension in facts.extensions_of(certificate):
        known = extension.oid in _KNOWN_CRITICAL or (proxy and extension.oid == PROXY_CERT_INFO)
        if extension.critical and not known:
            raise RefusedChainError("critical-extension", subject, f"has {extension.oid.dotted_string}, unknown here")


def _check_authorities(
    eec: x509.Certificate,
    cas: Sequence[x509.Certificate],
    trust: TrustStore,
    now: datetime,
    policy: ChainPolicy,
) -> None:
    for depth, (ca, child) in enumerate(zip(cas, [eec, *cas])):
        constraints = facts.extension(ca, x509.BasicConstraints)
        usage = facts.extension(ca, x509.KeyUsage)
        if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
            raise RefusedChainError("not-a-ca", subject_dn(ca), "is trusted here, but may not issue certificates")
        if constraints.path_length is not None and depth > constraints.path_length:
            raise RefusedChainError("ca-path-length", subject_dn(ca), "has more CAs below it than it may")
        if child is not ca:
            _check_revocation(child, ca, trust.crls_of(ca), now, policy)


def _check_revocation(
    child: x509.Certificate,
    ca: x509.Certificate,
    crls: Iterable[x509.CertificateRevocationList],
    now: datetime,
    policy: ChainPolicy,
) -> None:
    """Any list that names the certificate revokes it; one list of the CA must be current."""
    lists = current = 0
    for crl in crls:
        lists += 1
        if crl.get_revoked_certificate_by_serial_number(child.serial_number) is not None:
            raise RefusedChainError("revoked", subject_dn(child), "has been revoked by its CA")
        if any(extension.critical for extension in crl.extensions):
            continue  # a partial or indirect list proves nothing
        end = crl_next_update(crl)
        current += crl_last_update(crl) <= now and end is not None and now <= end
    if lists and not current:
        raise RefusedChainError(
            "crl-expired",
            subject_dn(child),
            f"the revocation list of {subject_dn(ca)} is not current; the site must update it",
        )
    if not lists and policy.require_crl:
        raise RefusedChainError(
            "crl-missing", subject_dn(child), f"the site has no revocation list of {subject_dn(ca)}"
        )


def _check_use(leaf: x509.Certificate, limited: bool, is_proxy: bool, policy: ChainPolicy) -> None:
    if limited and not policy.allow_limited:
        raise RefusedChainError("limited", subject_dn(leaf), "is a limited proxy, which may not start jobs")
    lifetime = facts.not_after(leaf) - facts.not_before(leaf)
    if is_proxy and policy.max_proxy_lifetime is not None and lifetime > policy.max_proxy_lifetime:
        raise RefusedChainError(
            "lifetime", subject_dn(leaf), f"is a proxy of {lifetime}, over {policy.max_proxy_lifetime}"
        )


def _extends(subject: bytes, issuer: bytes) -> bool:
    """Whether ``subject`` is ``issuer`` plus exactly one RDN with exactly one common name."""
    own = der.children(der.read(subject, der.SEQUENCE).content)
    base = der.children(der.read(issuer, der.SEQUENCE).content)
    if len(own) != len(base) + 1 or own[:-1] != base:
        return False
    attributes = der.children(der.expect(own[-1], der.SET).content)
    if len(attributes) != 1:
        return False
    return der.oid(der.children(attributes[0].content)[0]) == "2.5.4.3"


def _name(ca: TrustedCa) -> str:
    return subject_dn(ca.certificate)


def _malformed(rule: str, certificate: x509.Certificate, reason: str) -> MalformedChainError:
    return MalformedChainError(rule, subject_dn(certificate), reason)
