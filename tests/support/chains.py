"""Certificates for chain tests, good and bad, made in memory: every field can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Optional, Union

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from airpanda.x509 import der
from airpanda.x509.certificates import INHERIT_ALL, PROXY_CERT_INFO, ProxyCertInfo
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.policy import SigningPolicy
from airpanda.x509.trust import TrustedCa, TrustStore

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
ORGANISATION = "Test Grid"
Key = Union[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey]
CA_EXTENSIONS: tuple[tuple[x509.ExtensionType, bool], ...] = ((x509.BasicConstraints(True, None), True),)
EEC_EXTENSIONS: tuple[tuple[x509.ExtensionType, bool], ...] = ((x509.BasicConstraints(False, None), True),)


@cache
def key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same key for the same name, for the whole run: RSA keys are slow to make."""
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Made:
    """A certificate and its key."""

    cert: x509.Certificate
    key: Key


def name(*common_names: str, organisation: str = ORGANISATION) -> x509.Name:
    rdns = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)]
    return x509.Name(rdns + [x509.NameAttribute(NameOID.COMMON_NAME, text) for text in common_names])


def make(
    subject: x509.Name,
    own: Key,
    issuer: Optional[Made] = None,
    *,
    issuer_name: Optional[x509.Name] = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    start: datetime = NOW - DAY,
    end: datetime = NOW + 10 * DAY,
    serial: Optional[int] = None,
    digest: Optional[hashes.HashAlgorithm] = None,
) -> Made:
    """Any certificate at all; without an issuer it signs itself."""
    signer = issuer.key if issuer else own
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name or (issuer.cert.subject if issuer else subject))
        .public_key(own.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return Made(builder.sign(signer, digest or hashes.SHA256()), own)


def proxy_info(
    language: str = INHERIT_ALL, path_length: Optional[int] = None, *, critical: bool = True
) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(PROXY_CERT_INFO, ProxyCertInfo(language, path_length).to_der()), critical


def proxy(issuer: Made, label: str = "77", own: Optional[Key] = None, **changes: object) -> Made:
    """A proxy of ``issuer``; ``changes`` go to ``make``."""
    subject = x509.Name([*issuer.cert.subject.rdns, *name(label).rdns[1:]])
    arguments: dict[str, object] = {"extensions": [proxy_info()], **changes}
    return make(subject, own or key(f"proxy {label}"), issuer, **arguments)  # type: ignore[arg-type]


@cache
def ca() -> Made:
    return make(name("Test CA"), key("ca"), extensions=CA_EXTENSIONS)


@cache
def eec(common_name: str = "Alice Example") -> Made:
    return make(name(common_name), key(common_name), ca(), extensions=EEC_EXTENSIONS)


def credential(made: Made, *chain: Made) -> ProxyCredential:
    return ProxyCredential(made.cert, made.key, tuple(link.cert for link in chain))


def policy(pattern: str = f"/O={ORGANISATION}/*", ca_dn: str = f"/O={ORGANISATION}/CN=Test CA") -> SigningPolicy:
    return SigningPolicy({ca_dn: [pattern]})


def trust(*crls: x509.CertificateRevocationList, cas: Sequence[Made] = ()) -> TrustStore:
    trusted = [TrustedCa(made.cert, (policy(),)) for made in (cas or [ca()])]
    return TrustStore(trusted, crls)


def crl(
    *serials: int,
    issuer: Optional[Made] = None,
    signer: Optional[Key] = None,
    start: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
) -> x509.CertificateRevocationList:
    made = issuer or ca()
    builder = x509.CertificateRevocationListBuilder(made.cert.subject, start, end)
    for serial in serials:
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, start).build())
    return builder.sign(signer or made.key, hashes.SHA256())


def resigned_with_sha1(made: Made, issuer: Made) -> Made:
    """The same certificate with a SHA-1 signature, which ``cryptography`` no longer makes by itself."""
    sha256, sha1 = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")
    tbs = made.cert.tbs_certificate_bytes.replace(sha256, sha1)
    assert isinstance(issuer.key, rsa.RSAPrivateKey)
    signature = issuer.key.sign(tbs, padding.PKCS1v15(), hashes.SHA1())
    algorithm = der.wrap(der.SEQUENCE, der.wrap(der.OID, sha1) + b"\x05\x00")
    body = tbs + algorithm + der.wrap(der.BIT_STRING, b"\0" + signature)
    return Made(x509.load_der_x509_certificate(der.wrap(der.SEQUENCE, body)), made.key)
