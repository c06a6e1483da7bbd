"""A small grid PKI on disk: one CA, a host certificate, end-user certificates.

The certificate directory is one that OpenSSL, Globus, VOMS and LCMAPS all read: both hash names of the CA
and its signing policy. Nothing is called but ``cryptography``.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFETIME = timedelta(days=3650)
LIFETIME = timedelta(days=365)
_STRING_TAGS = frozenset({0x0C, 0x13, 0x14, 0x16, 0x1A, 0x1C, 0x1E})


class CertFiles(NamedTuple):
    """A certificate and its unencrypted key, both PEM; the key file is 0600."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class DemoPki:
    """Where the parts of one PKI lie. Made by ``make_pki``."""

    root: Path
    organisation: str

    @property
    def ca(self) -> CertFiles:
        return self._files("ca")

    @property
    def ca_dir(self) -> Path:
        """The certificate directory (``X509_CERT_DIR``)."""
        return self.root / "certs"

    @property
    def host(self) -> CertFiles:
        """For every server on this machine: its SAN has the host names, ``localhost`` and 127.0.0.1."""
        return self._files("host")

    def user(self, stem: str) -> CertFiles:
        """The files of one user.

        Raises:
            KeyError: ``make_pki`` was never asked for this user.
        """
        files = self._files(stem)
        if not files.key.exists():
            raise KeyError(stem)
        return files

    def dn(self, stem: str) -> str:
        """The subject of a user (or ``host``, ``ca``) in one-line form."""
        certificate = x509.load_pem_x509_certificate(self._files(stem).cert.read_bytes())
        common_name = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return f"/O={self.organisation}/CN={common_name!s}"

    def _files(self, stem: str) -> CertFiles:
        return CertFiles(self.root / f"{stem}.pem", self.root / f"{stem}.key")


def make_pki(
    root: Path,
    *,
    users: Mapping[str, str],
    organisation: str = "Test Grid",
    hostnames: Sequence[str] = (),
) -> DemoPki:
    """The PKI below ``root``; what is already there is kept, what is missing is made.

    Args:
        users: file stem to common name, for example ``{"alice": "Alice Example"}``.
        organisation: the O of every subject; the signing policy allows only it.
        hostnames: more names for the host certificate; ``localhost``, 127.0.0.1 and this machine's name are in it.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    pki = DemoPki(root, organisation)
    if not pki.ca.cert.exists():
        _make_ca(pki)
    _install_ca(pki)
    if not pki.host.cert.exists():
        names = list(dict.fromkeys([*hostnames, socket.gethostname(), "localhost"]))
        issue(pki, "host", names[0], usages=_SERVER, alternatives=[x509.DNSName(name) for name in names])
    for stem, common_name in users.items():
        if not (root / f"{stem}.pem").exists():
            issue(pki, stem, common_name)
    return pki


_CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_SERVER = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def issue(
    pki: DemoPki,
    stem: str,
    common_name: str,
    *,
    usages: Sequence[x509.ObjectIdentifier] = _CLIENT,
    alternatives: Sequence[x509.GeneralName] = (),
    lifetime: timedelta = LIFETIME,
) -> CertFiles:
    """Sign one end-entity certificate and write its two files, replacing older ones.

    A lifetime below zero gives a certificate that has already expired.
    """
    ca_key, ca_cert = _load(pki.ca)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    builder = _builder(_name(pki.organisation, common_name), ca_cert.subject, key, lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(digital_signature=True, key_encipherment=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(authority, critical=False)
    if alternatives:
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([*alternatives, loopback]), critical=False)
    files = CertFiles(pki.root / f"{stem}.pem", pki.root / f"{stem}.key")
    _write(files, builder.sign(ca_key, hashes.SHA256()), key)
    return files


def write_crl(pki: DemoPki, revoked: Sequence[Path] = (), *, lifetime: timedelta = timedelta(days=30)) -> None:
    """Sign a revocation list naming the certificates in these files and install it under both hash names."""
    ca_key, ca_cert = _load(pki.ca)
    now = datetime.now(UTC)
    start = min(now, now + lifetime) - timedelta(hours=1)
    builder = x509.CertificateRevocationListBuilder(ca_cert.subject, start, now + lifetime)
    for path in revoked:
        serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
        entry = x509.RevokedCertificateBuilder(serial, now - timedelta(minutes=1)).build()
        builder = builder.add_revoked_certificate(entry)
    pem = builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    for name in ca_hashes(ca_cert.subject):
        _replace(pki.ca_dir / f"{name}.r0", pem, 0o644)


def ca_hashes(subject: x509.Name) -> tuple[str, str]:
    """OpenSSL's ``subject_hash`` and ``subject_hash_old``, the file names of a CA directory.

    Source: OpenSSL crypto/x509/x_name.c (x509_name_canon) and x509_cmp.c (X509_NAME_hash_ex).
    """
    der = subject.public_bytes()
    canonical = b"".join(_canonical_rdn(rdn) for rdn in _items(_contents(der)))
    new = hashlib.sha1(canonical, usedforsecurity=False).digest()
    old = hashlib.md5(der, usedforsecurity=False).digest()
    return f"{int.from_bytes(new[:4], 'little'):08x}", f"{int.from_bytes(old[:4], 'little'):08x}"


def _make_ca(pki: DemoPki) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = _name(pki.organisation, f"{pki.organisation} CA")
    builder = _builder(name, name, key, CA_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    _write(pki.ca, builder.sign(key, hashes.SHA256()), key)


def _install_ca(pki: DemoPki) -> None:
    pki.ca_dir.mkdir(mode=0o755, exist_ok=True)
    pem = pki.ca.cert.read_bytes()
    policy = (
        f" access_id_CA  X509  '{pki.dn('ca')}'\n"
        " pos_rights    globus CA:sign\n"
        f" cond_subjects globus '\"/O={pki.organisation}/*\"'\n"
    )
    for name in ca_hashes(x509.load_pem_x509_certificate(pem).subject):
        for path, data in ((f"{name}.0", pem), (f"{name}.signing_policy", policy.encode())):
            if not (pki.ca_dir / path).exists():
                _replace(pki.ca_dir / path, data, 0o644)


def _name(organisation: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPrivateKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    start = min(now, now + lifetime) - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(**wanted: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names})


def _load(files: CertFiles) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError(f"{files.key} is not an RSA key")
    return key, x509.load_pem_x509_certificate(files.cert.read_bytes())


def _write(files: CertFiles, certificate: x509.Certificate, key: rsa.RSAPrivateKey) -> None:
    """The key goes first: a certificate file says that the pair is complete."""
    pem = serialization.Encoding.PEM
    layout = serialization.PrivateFormat.TraditionalOpenSSL
    _replace(files.key, key.private_bytes(pem, layout, serialization.NoEncryption()), 0o600)
    _replace(files.cert, certificate.public_bytes(pem), 0o644)


def _replace(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        os.fchmod(descriptor, mode)
    temporary.replace(path)


def _canonical_rdn(rdn: bytes) -> bytes:
    attributes = []
    for attribute in _items(_contents(rdn)):
        oid, value = _items(_contents(attribute))
        attributes.append(_wrap(0x30, oid + _canonical_value(value)))
    return _wrap(0x31, b"".join(sorted(attributes)))


def _canonical_value(value: bytes) -> bytes:
    """Strings become UTF-8, trimmed, lower case, with single spaces; other types stay."""
    if value[0] not in _STRING_TAGS:
        return value
    codec = {0x1E: "utf-16-be", 0x1C: "utf-32-be", 0x0C: "utf-8"}.get(value[0], "latin-1")
    words = [word for word in _contents(value).decode(codec).split(" ") if word]
    text = " ".join(words)
    return _wrap(0x0C, "".join(c.lower() if c.isascii() else c for c in text).encode())


def _contents(item: bytes) -> bytes:
    return item[_header(item) :]


def _items(data: bytes) -> list[bytes]:
    items = []
    while data:
        size = _header(data) + _length(data)
        items.append(data[:size])
        data = data[size:]
    return items


def _header(item: bytes) -> int:
    return 2 if item[1] < 0x80 else 2 + (item[1] & 0x7F)


def _length(item: bytes) -> int:
    return item[1] if item[1] < 0x80 else int.from_bytes(item[2 : _header(item)], "big")


def _wrap(tag: int, data: bytes) -> bytes:
    size = len(data)
    if size < 0x80:
        return bytes([tag, size]) + data
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + data
