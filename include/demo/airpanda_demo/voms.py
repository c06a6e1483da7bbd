"""A VOMS server's signature without a VOMS server: proxies that carry attributes, as ``voms-proxy-fake`` makes them.

The host certificate of the demonstration's PKI plays the VOMS server; ``make_vomsdir`` says so to those who verify.

Source: OGF GFD.182 (VOMS attribute certificate format); RFC 5755 (attribute certificates); RFC 3820 (proxies).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from airpanda.x509.credential import ProxyCredential
from airpanda.x509.der import BIT_STRING, GENERALIZED_TIME, INTEGER, OCTET_STRING, OID, SEQUENCE, SET, wrap
from airpanda.x509.proxy import create_proxy
from airpanda_demo.pki import DemoPki

VO = "testgrid"
_SERVER = "localhost:15000"
_SHA256_WITH_RSA = wrap(SEQUENCE, wrap(OID, bytes.fromhex("2a864886f70d01010b")) + wrap(0x05, b""))
_FQAN_ATTRIBUTE = bytes.fromhex("2b06010401be45646404")  # 1.3.6.1.4.1.8005.100.100.4
_CERT_LIST = bytes.fromhex("2b06010401be4564640a")  # 1.3.6.1.4.1.8005.100.100.10
_NO_REVOCATION = bytes.fromhex("551d38")  # 2.5.29.56
_AUTHORITY_KEY = bytes.fromhex("551d23")  # 2.5.29.35
_AC_SEQUENCE = x509.ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
_BACKDATE = timedelta(minutes=5)


def make_vomsdir(pki: DemoPki, path: Path) -> Path:
    """The directory that lets the host certificate speak for the VO."""
    (path / VO).mkdir(mode=0o755, parents=True, exist_ok=True)
    (path / VO / "localhost.lsc").write_text(f"{pki.dn('host')}\n{pki.dn('ca')}\n")
    return path


def attribute_proxy(
    pki: DemoPki, who: str, fqans: Sequence[str], *, lifetime: timedelta, now: datetime
) -> ProxyCredential:
    """A proxy of one of the PKI's users with these attributes of ``VO``, primary first."""
    issuer = ProxyCredential.from_files(*pki.user(who))
    plain = create_proxy(issuer, lifetime=lifetime, now=now)
    attributes = _sequence(_sequence(_attribute_certificate(pki, issuer.eec, fqans, lifetime, now)))
    # The same proxy once more, now with the attributes inside what is signed.
    old = plain.certificates[0]
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, plain.private_key.public_key(), old.serial_number,
        old.not_valid_before_utc, old.not_valid_after_utc,
    )  # fmt: skip
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    builder = builder.add_extension(x509.UnrecognizedExtension(_AC_SEQUENCE, attributes), critical=False)
    return ProxyCredential(builder.sign(issuer.private_key, hashes.SHA256()), plain.private_key, plain.certificates[1:])


def _attribute_certificate(
    pki: DemoPki, holder: x509.Certificate, fqans: Sequence[str], lifetime: timedelta, now: datetime
) -> bytes:
    server = ProxyCredential.from_files(*pki.host)
    if not isinstance(server.private_key, rsa.RSAPrivateKey):
        raise TypeError("the demonstration's PKI has RSA keys only")
    base = _general_name(holder.issuer) + _integer(holder.serial_number)
    certificate = server.eec.public_bytes(Encoding.DER)
    key_id = x509.SubjectKeyIdentifier.from_public_key(server.private_key.public_key()).digest
    extensions = _extension(_AUTHORITY_KEY, _sequence(wrap(0x80, key_id)))
    extensions += _extension(_NO_REVOCATION, wrap(0x05, b"")) + _extension(
        _CERT_LIST, _sequence(_sequence(certificate))
    )
    info = _sequence(
        _integer(1),
        _sequence(wrap(0xA0, base)),
        wrap(0xA0, _general_name(server.eec.subject)),
        _SHA256_WITH_RSA,
        _integer(secrets.randbits(64)),
        _sequence(_time(now - _BACKDATE), _time(now + lifetime)),
        _sequence(_fqan_attribute(fqans)),
        _sequence(extensions),
    )
    signature = server.private_key.sign(info, padding.PKCS1v15(), hashes.SHA256())
    return _sequence(info, _SHA256_WITH_RSA, wrap(BIT_STRING, b"\0" + signature))


def _fqan_attribute(fqans: Sequence[str]) -> bytes:
    authority = wrap(0xA0, wrap(0x86, f"{VO}://{_SERVER}".encode()))
    values = _sequence(*(wrap(OCTET_STRING, fqan.encode()) for fqan in fqans))
    return _sequence(wrap(OID, _FQAN_ATTRIBUTE), wrap(SET, _sequence(authority, values)))


def _extension(oid: bytes, value: bytes) -> bytes:
    return _sequence(wrap(OID, oid), wrap(OCTET_STRING, value))


def _general_name(name: x509.Name) -> bytes:
    """GeneralNames with one directoryName."""
    return _sequence(wrap(0xA4, name.public_bytes()))


def _sequence(*items: bytes) -> bytes:
    return wrap(SEQUENCE, b"".join(items))


def _integer(number: int) -> bytes:
    return wrap(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _time(moment: datetime) -> bytes:
    return wrap(GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())
