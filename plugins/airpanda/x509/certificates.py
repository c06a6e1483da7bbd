"""Facts about one certificate: times, key strength, proxy information, signatures. No I/O, no clock."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from typing import Optional, TypeVar, Union, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from airpanda.core.records import dataclass
from airpanda.x509 import der

PrivateKey = Union[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey]
PublicKey = Union[rsa.RSAPublicKey, ec.EllipticCurvePublicKey]

PROXY_CERT_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
INHERIT_ALL = "1.3.6.1.5.5.7.21.1"
LIMITED = "1.3.6.1.4.1.3536.1.1.1.9"
_LANGUAGES = {
    INHERIT_ALL: bytes.fromhex("06082b06010505071501"),
    LIMITED: bytes.fromhex("060b2b060104019b5001010109"),
}
MIN_RSA_BITS = 2048
MIN_EC_BITS = 256

E = TypeVar("E", bound=x509.ExtensionType)


@dataclass(frozen=True)
class ProxyCertInfo:
    """The extension that makes a certificate a proxy.

    Source: RFC 3820, 3.8.
    """

    language: str
    path_length: Optional[int] = None
    has_policy: bool = False

    @classmethod
    def from_der(cls, data: bytes) -> ProxyCertInfo:
        """Read the extension's value.

        Raises:
            DerError: not a ProxyCertInfo.
        """
        fields = der.children(der.read(data, der.SEQUENCE).content)
        path_length = None
        if fields and fields[0].tag == der.INTEGER:
            path_length = der.integer(fields.pop(0))
            if path_length < 0:
                raise der.DerError("a negative path length")
        if len(fields) != 1:
            raise der.DerError("expected one proxy policy")
        policy = der.children(der.expect(fields[0], der.SEQUENCE).content)
        if len(policy) not in (1, 2):
            raise der.DerError("a proxy policy has one or two fields")
        return cls(der.oid(policy[0]), path_length, len(policy) == 2)

    def to_der(self) -> bytes:
        """The extension's value; only the two languages that proxies of this room are made with."""
        policy = der.wrap(der.SEQUENCE, _LANGUAGES[self.language])
        length = b""
        if self.path_length is not None:
            size = self.path_length.bit_length() // 8 + 1
            length = der.wrap(der.INTEGER, self.path_length.to_bytes(size, "big"))
        return der.wrap(der.SEQUENCE, length + policy)


@lru_cache(maxsize=1024)  # a verification asks for each certificate's several times
def proxy_cert_info(certificate: x509.Certificate) -> Optional[ProxyCertInfo]:
    """The proxy information, or None for a certificate that is no RFC 3820 proxy.

    Raises:
        ValueError: the extensions, or this one, cannot be read.
    """
    for extension in extensions_of(certificate):
        if extension.oid == PROXY_CERT_INFO:
            return ProxyCertInfo.from_der(cast("x509.UnrecognizedExtension", extension.value).value)
    return None


@lru_cache(maxsize=1024)
def extensions_of(certificate: x509.Certificate) -> tuple[x509.Extension[x509.ExtensionType], ...]:
    """All extensions.

    Raises:
        ValueError: one of them cannot be read, or is there twice.
    """
    try:
        return tuple(certificate.extensions)
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError("a duplicate or unreadable extension") from error


def extension(certificate: x509.Certificate, kind: type[E]) -> Optional[E]:
    """The value of one kind of extension, or None."""
    for candidate in extensions_of(certificate):
        if isinstance(candidate.value, kind):
            return candidate.value
    return None


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether the certificate says it may issue certificates, by either of the two ways of saying so."""
    constraints = extension(certificate, x509.BasicConstraints)
    usage = extension(certificate, x509.KeyUsage)
    return bool(constraints and constraints.ca) or bool(usage and usage.key_cert_sign)


def not_before(certificate: x509.Certificate) -> datetime:
    """Start of validity, aware; ``cryptography`` before 42 knows naive UTC only."""
    if hasattr(certificate, "not_valid_before_utc"):
        return certificate.not_valid_before_utc
    return certificate.not_valid_before.replace(tzinfo=timezone.utc)


def not_after(certificate: x509.Certificate) -> datetime:
    """End of validity, aware."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_after_utc
    return certificate.not_valid_after.replace(tzinfo=timezone.utc)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the DER, lower-case hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def weakness(key: object) -> Optional[str]:
    """Why a public key is refused, or None."""
    if isinstance(key, rsa.RSAPublicKey):
        return None if key.key_size >= MIN_RSA_BITS else f"its RSA key has {key.key_size} bits, under {MIN_RSA_BITS}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if key.curve.key_size >= MIN_EC_BITS else f"its curve {key.curve.name} is too small"
    if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return None
    return "its key is neither RSA nor an elliptic curve"


def public_key(certificate: x509.Certificate) -> object:
    """The key, or None for a kind that ``cryptography`` does not know."""
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None


def same_key(one: object, other: object) -> bool:
    """Whether two public keys are the same key."""
    return _spki(one) == _spki(other)


def digest_of(certificate: Union[x509.Certificate, x509.CertificateRevocationList]) -> Optional[str]:
    """Name of the signature's digest: ``sha256``; ``none`` for EdDSA; None for an unknown algorithm."""
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None
    return "none" if algorithm is None else algorithm.name


@lru_cache(maxsize=1024)  # a matter of two certificates' bytes: the same upper links are met again and again
def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the signature was made with the issuer's key. Names and everything else are not looked at."""
    return signature_is_by(
        public_key(issuer), certificate.signature, certificate.tbs_certificate_bytes, _digest(certificate)
    )


def signature_is_by(key: object, signature: bytes, data: bytes, digest: Optional[hashes.HashAlgorithm]) -> bool:
    """PKCS#1 v1.5, ECDSA or EdDSA. RSA-PSS is not used on the grid and refused."""
    try:
        if isinstance(key, rsa.RSAPublicKey) and digest is not None:
            key.verify(signature, data, padding.PKCS1v15(), digest)
        elif isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
            key.verify(signature, data, ec.ECDSA(digest))
        elif isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)) and digest is None:
            key.verify(signature, data)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _digest(certificate: x509.Certificate) -> Optional[hashes.HashAlgorithm]:
    try:
        return certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None


def _spki(key: object) -> Optional[bytes]:
    if not hasattr(key, "public_bytes"):
        return None
    layout = serialization.PublicFormat.SubjectPublicKeyInfo
    return cast("bytes", key.public_bytes(serialization.Encoding.DER, layout))
