"""Making proxies: from a credential with a fresh key, or for a peer's certificate request (delegation).

What MyProxy and Globus make, this makes: see ``_sign``. No I/O, no clock.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Optional, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from airpanda.core.errors import CredentialError, RequestError
from airpanda.x509 import der
from airpanda.x509.certificates import (
    INHERIT_ALL,
    LIMITED,
    PROXY_CERT_INFO,
    PrivateKey,
    ProxyCertInfo,
    PublicKey,
    extension,
    extensions_of,
    proxy_cert_info,
    signature_is_by,
    weakness,
)
from airpanda.x509.credential import ProxyCredential

BACKDATE = timedelta(minutes=5)
RSA_BITS = 2048


def new_key() -> rsa.RSAPrivateKey:
    """A fresh RSA key of 2048 bits: what every peer accepts."""
    return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)


def create_proxy(
    issuer: ProxyCredential,
    *,
    lifetime: timedelta,
    now: datetime,
    limited: bool = False,
    path_length: Optional[int] = None,
    key: Optional[PrivateKey] = None,
) -> ProxyCredential:
    """A proxy signed by ``issuer``, with a fresh key unless one is given (use a key once).

    It never outlives its issuer, and is limited where the issuer is.

    Raises:
        RequestError: a lifetime or path length that is not positive, or a weak key.
        CredentialError: the issuer has expired or may not issue proxies.
    """
    own = new_key() if key is None else key
    certificate = _sign(issuer, own.public_key(), lifetime, now, limited, path_length)
    return ProxyCredential(certificate, own, _up_to_eec(issuer))


def sign_request(
    issuer: ProxyCredential, csr_der: bytes, *, lifetime: timedelta, now: datetime, limited: bool = False
) -> list[bytes]:
    """Delegate to a peer: sign its PKCS#10 request. Only the request's key is used, never its subject.

    Returns:
        The DER chain: the new proxy, the issuer, and so on up to the end entity.

    Raises:
        RequestError: the request is unreadable, not signed by its own key, or its key is weak.
        CredentialError: the issuer has expired or may not issue proxies.
    """
    certificate = _sign(issuer, request_key(csr_der), lifetime, now, limited, None)
    return [_der(item) for item in (certificate, *_up_to_eec(issuer))]


def make_request(key: PrivateKey) -> bytes:
    """A PKCS#10 request (version 0, as OpenSSL 3 demands) in DER; the subject has no meaning here."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def request_key(csr_der: bytes) -> PublicKey:
    """The public key of a request that proves possession of it.

    A-REX writes version 2 instead of 0, which means nothing else (RFC 2986, 4.1, knows 0 alone), so 2 is read as 0; the
    signature is verified over what was signed.

    Raises:
        RequestError: unreadable, not signed by its own key, or a weak or unknown kind of key.
    """
    try:
        plain, signed = _as_version_0(csr_der)
        request = x509.load_der_x509_csr(plain)
        key = request.public_key()
        valid = signature_is_by(key, request.signature, signed, request.signature_hash_algorithm)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise RequestError("the certificate request cannot be read; its version must be 0 or 2") from error
    if not valid:
        raise RequestError("the certificate request is not signed by its own key")
    reason = weakness(key)
    if reason is not None:
        raise RequestError(f"the certificate request is refused: {reason}")
    return cast("PublicKey", key)


def _as_version_0(csr_der: bytes) -> tuple[bytes, bytes]:
    """The request with version 0 where it says 2, and the bytes of it that were signed."""
    parts = der.children(der.read(csr_der, der.SEQUENCE).content)
    if not parts:
        raise der.DerError("an empty request")
    signed = parts[0].raw
    version, *rest = der.children(der.expect(parts[0], der.SEQUENCE).content)
    if der.integer(version) != 2:
        return csr_der, signed
    info = der.wrap(der.SEQUENCE, b"".join([der.wrap(der.INTEGER, b"\0"), *(item.raw for item in rest)]))
    return der.wrap(der.SEQUENCE, b"".join([info, *(item.raw for item in parts[1:])])), signed


def _sign(
    issuer: ProxyCredential,
    key: PublicKey,
    lifetime: timedelta,
    now: datetime,
    limited: bool,
    path_length: Optional[int],
) -> x509.Certificate:
    """Source: RFC 3820, 3; Globus gsi_proxy (globus_gsi_proxy_handle.c, globus_gsi_proxy_sign_key)."""
    _check_arguments(key, lifetime, path_length)
    _check_issuer(issuer, now)
    serial = _serial(key)
    common_name = x509.NameAttribute(NameOID.COMMON_NAME, str(serial))
    info = ProxyCertInfo(LIMITED if limited or issuer.is_limited else INHERIT_ALL, path_length)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([*issuer.certificate.subject.rdns, x509.RelativeDistinguishedName([common_name])]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(max(now - BACKDATE, issuer.not_before))
        .not_valid_after(min(now + lifetime, issuer.not_after))
        .add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, info.to_der()), critical=True)
        .add_extension(_key_usage(issuer.certificate), critical=True)
    )
    for inherited in extensions_of(issuer.certificate):
        if isinstance(inherited.value, x509.ExtendedKeyUsage):
            builder = builder.add_extension(inherited.value, critical=inherited.critical)
    return builder.sign(issuer.private_key, hashes.SHA256())


def _check_arguments(key: PublicKey, lifetime: timedelta, path_length: Optional[int]) -> None:
    if lifetime <= timedelta(0):
        raise RequestError("a proxy needs a lifetime of more than 0 seconds")
    if path_length is not None and path_length < 0:
        raise RequestError("a path length cannot be negative")
    reason = weakness(key)
    if reason is not None:
        raise RequestError(f"no proxy is made for this key: {reason}")


def _check_issuer(issuer: ProxyCredential, now: datetime) -> None:
    if issuer.not_after <= now:
        raise CredentialError(f"the credential of {issuer.identity} has expired; its owner must renew it")
    if issuer.not_before > now:
        raise CredentialError(f"the credential of {issuer.identity} is not valid yet; check the clock")
    constraints = extension(issuer.certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise CredentialError(f"{issuer.subject_dn} is a certificate authority, which may not issue proxies")
    usage = extension(issuer.certificate, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise CredentialError(f"{issuer.subject_dn} may not sign, and so not issue proxies (keyUsage)")
    for depth, certificate in enumerate(issuer.certificates):
        info = proxy_cert_info(certificate)
        if info is not None and info.path_length is not None and info.path_length <= depth:
            raise CredentialError(f"a proxy of {issuer.identity} forbids a further delegation (path length)")


def _up_to_eec(issuer: ProxyCredential) -> tuple[x509.Certificate, ...]:
    certificates = issuer.certificates
    return certificates[: certificates.index(issuer.eec) + 1]


def _serial(key: PublicKey) -> int:
    """31 bits of the key's SHA-1, as Globus does it; an identifier, not a protection."""
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha1(spki).digest()  # noqa: S324
    return max(1, int.from_bytes(digest[:4], "little") & 0x7FFFFFFF)


def _key_usage(issuer: x509.Certificate) -> x509.KeyUsage:
    """The issuer's usage without non-repudiation and the CA's; where it has none, the two a proxy needs."""
    usage = extension(issuer, x509.KeyUsage)
    agreement = usage is not None and usage.key_agreement
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=usage is None or usage.key_encipherment,
        data_encipherment=usage is not None and usage.data_encipherment,
        key_agreement=agreement,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=bool(agreement and usage is not None and usage.encipher_only),
        decipher_only=bool(agreement and usage is not None and usage.decipher_only),
    )


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
