"""PEM text to certificates and one key, strictly and bounded; and back. No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, Optional

import cryptography
from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from airpanda.core.secret import Secret
from airpanda.x509.certificates import PrivateKey, proxy_cert_info
from airpanda.x509.errors import CredentialFileError

MAX_PEM_BYTES = 1024 * 1024
MAX_CERTIFICATES = 16
MAX_RSA_BITS = 16384

_KEY_LABELS = frozenset({b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"})
_PEM = serialization.Encoding.PEM

# Before 39 the option is an attribute of the one backend. What it skips, ``_is_consistent`` and ``_signs`` check.
_HAS_OPTION = int(cryptography.__version__.split(".")[0]) >= 39
_SKIP_PRIMALITY: dict[str, Any] = {"unsafe_skip_rsa_key_validation": True} if _HAS_OPTION else {}
_BACKEND: Any = None if _HAS_OPTION else import_module("cryptography.hazmat.backends.openssl.backend").backend


def split(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """The certificate blocks and the key blocks, each in the order of the text.

    Raises:
        CredentialFileError: too long, a NUL, a broken block, a block of another kind, too many certificates.
    """
    if len(data) > MAX_PEM_BYTES:
        raise CredentialFileError(f"the credential is longer than {MAX_PEM_BYTES} bytes")
    if b"\0" in data:
        raise CredentialFileError("the credential holds a NUL byte, which no PEM text does")
    certificates, keys = [], []
    for label, block in _blocks(data):
        if label == b"CERTIFICATE":
            certificates.append(block)
        elif label in _KEY_LABELS:
            keys.append(block)
        elif label != b"EC PARAMETERS":
            raise CredentialFileError("the credential holds a PEM block that is neither certificate nor key")
    if len(certificates) > MAX_CERTIFICATES:
        raise CredentialFileError(f"the credential holds more than {MAX_CERTIFICATES} certificates")
    return certificates, keys


def _blocks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Label and text of each block; line by line, so that hostile text costs no more than its length."""
    label = b""
    lines: list[bytes] = []
    for raw in data.split(b"\n"):
        line = raw.rstrip()
        if not label and line.startswith(b"-----BEGIN ") and line.endswith(b"-----"):
            label, lines = line[11:-5], [line]
        elif label and line == b"-----END " + label + b"-----":
            yield label, b"\n".join([*lines, line, b""])
            label = b""
        elif line.startswith(b"-----"):
            raise CredentialFileError("the credential holds a broken PEM block")
        elif label:
            lines.append(line)
    if label:
        raise CredentialFileError("the credential ends inside a PEM block")


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM text, in its order; keys in it are an error.

    Raises:
        CredentialFileError: as ``split``, no certificate, an unreadable one, or a private key.
    """
    blocks, keys = split(data)
    if keys:
        raise CredentialFileError("a private key stands where only certificates belong")
    if not blocks:
        raise CredentialFileError("there is no certificate")
    return parse_certificates(blocks)


def parse_certificates(blocks: Iterable[bytes], *, encoding: str = "PEM") -> list[x509.Certificate]:
    """Parse each block (``PEM`` or ``DER``) with all its extensions.

    Raises:
        CredentialFileError: one of them is no certificate.
    """
    load = x509.load_pem_x509_certificate if encoding == "PEM" else x509.load_der_x509_certificate
    certificates = []
    for number, block in enumerate(blocks, 1):
        try:
            certificate = load(block)
            proxy_cert_info(certificate)  # reads every extension, and this one to its end
        except (ValueError, x509.InvalidVersion) as error:
            raise CredentialFileError(f"certificate {number} cannot be read") from error
        certificates.append(certificate)
    return certificates


def load_key(block: bytes, passphrase: Optional[Secret[str]] = None) -> PrivateKey:
    """The private key of one PEM block.

    Raises:
        CredentialFileError: unreadable, protected by a passphrase that is missing or wrong, or of another kind.
    """
    protected = b"ENCRYPTED" in block[:200]
    if protected and passphrase is None:
        raise CredentialFileError("the private key is protected by a passphrase, and none was given")
    secret = passphrase.reveal().encode() if passphrase is not None and protected else None
    try:
        with _skipping_primality():
            key = serialization.load_pem_private_key(block, secret, **_SKIP_PRIMALITY)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        hint = " (a wrong passphrase, perhaps)" if protected else ""
        raise CredentialFileError(f"the private key cannot be read{hint}") from None
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise CredentialFileError("the private key is neither RSA nor an elliptic curve")
    if (isinstance(key, rsa.RSAPrivateKey) and not _is_consistent(key)) or not _signs(key):
        raise CredentialFileError("the private key is damaged: its numbers do not belong together")
    return key


@contextlib.contextmanager
def _skipping_primality() -> Iterator[None]:
    """Debian 12's 38.0.4 would take 30 ms for each key."""
    if not hasattr(_BACKEND, "_rsa_skip_check_key"):
        yield
        return
    before, _BACKEND._rsa_skip_check_key = _BACKEND._rsa_skip_check_key, True
    try:
        yield
    finally:
        _BACKEND._rsa_skip_check_key = before


def _is_consistent(key: rsa.RSAPrivateKey) -> bool:
    """What OpenSSL's own check asks of an RSA key, but for the primality of its factors, which takes 30 ms.

    A signature that verifies stands in for that: with a composite factor and otherwise fitting numbers it does not.

    Source: RFC 8017, 3.2.
    """
    if key.key_size > MAX_RSA_BITS:
        raise CredentialFileError(f"the private key has {key.key_size} bits, over {MAX_RSA_BITS}")
    numbers = key.private_numbers()
    n, e = numbers.public_numbers.n, numbers.public_numbers.e
    p, q, d = numbers.p, numbers.q, numbers.d
    return (
        n % 2 == 1
        and min(p, q) > 2
        and p * q == n
        and (e * d) % (p - 1) == (e * d) % (q - 1) == 1
        and (numbers.dmp1, numbers.dmq1) == (d % (p - 1), d % (q - 1))
        and (numbers.iqmp * q) % p == 1
    )


def _signs(key: PrivateKey) -> bool:
    """Whether what the private half signs, the public half verifies."""
    probe, digest = b"airpanda", hashes.SHA256()
    try:
        if isinstance(key, rsa.RSAPrivateKey):
            key.public_key().verify(key.sign(probe, padding.PKCS1v15(), digest), probe, padding.PKCS1v15(), digest)
        else:
            key.public_key().verify(key.sign(probe, ec.ECDSA(digest)), probe, ec.ECDSA(digest))
    except (InvalidSignature, InternalError, ValueError):
        return False
    return True


def key_pem(key: PrivateKey) -> bytes:
    """The form that Globus, VOMS and JGlobus all read: PKCS#1 for RSA, PKCS#8 for elliptic curves."""
    rsa_key = isinstance(key, rsa.RSAPrivateKey)
    layout = serialization.PrivateFormat.TraditionalOpenSSL if rsa_key else serialization.PrivateFormat.PKCS8
    return key.private_bytes(_PEM, layout, serialization.NoEncryption())


def encrypted_key_pem(key: PrivateKey, passphrase: Secret[str]) -> bytes:
    """PKCS#8 with PBES2 and AES-256-CBC, as ``openssl pkcs8 -topk8 -v2 aes-256-cbc`` writes it."""
    encryption = serialization.BestAvailableEncryption(passphrase.reveal().encode())
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, encryption)


def certificates_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(_PEM) for certificate in certificates)
