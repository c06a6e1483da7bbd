"""VOMS attribute certificates: read the FQANs in a proxy, and believe them only after verification.

No I/O but the reading of a ``vomsdir``; no clock.

Source: OGF GFD.182 (VOMS attribute certificate format); RFC 5755 (attribute certificates).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Optional, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from airpanda.core.errors import ConfigurationError, RequestError
from airpanda.core.identity import Fqan
from airpanda.core.records import dataclass
from airpanda.x509 import certificates as facts
from airpanda.x509 import der, pem
from airpanda.x509.chain import ChainPolicy, verify_chain
from airpanda.x509.dn import dn_from_der, raw_names, subject_dn
from airpanda.x509.errors import ChainError, CredentialFileError, VomsError
from airpanda.x509.files import read_public
from airpanda.x509.trust import TrustStore

AC_SEQUENCE = x509.ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
_FQAN_ATTRIBUTE = "1.3.6.1.4.1.8005.100.100.4"
_CERT_LIST = "1.3.6.1.4.1.8005.100.100.10"
_KNOWN_CRITICAL = frozenset({_CERT_LIST, "2.5.29.56", "2.5.29.35"})  # and noRevAvail, authorityKeyIdentifier
_DIGESTS = {
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
    "1.2.840.10045.4.3.2": hashes.SHA256(),
    "1.2.840.10045.4.3.3": hashes.SHA384(),
    "1.2.840.10045.4.3.4": hashes.SHA512(),
}
_HOST_POLICY = ChainPolicy(require_client_usage=False)


@dataclass(frozen=True)
class AttributeCertificate:
    """One AC as it stands in a proxy; nothing of it is verified.

    ``fqans`` keeps VOMS's order: the first is the primary one. ``certificates`` are the VOMS server's, as sent.
    """

    vo: str
    server: str
    fqans: tuple[Fqan, ...]
    holder_issuer: bytes
    holder_serial: int
    issuer: bytes
    not_before: datetime
    not_after: datetime
    algorithm: str
    signed: bytes
    signature: bytes
    certificates: tuple[x509.Certificate, ...]


@dataclass(frozen=True)
class VomsAttributes:
    """What a verified AC says: the VO, its FQANs, primary first, and when the AC ends (before or after the proxy)."""

    vo: str
    fqans: tuple[Fqan, ...]
    not_after: datetime
    issuer_dn: str


class VomsDirectory:
    """Which VOMS server's certificate may speak for which VO: ``<vo>/<host>.lsc`` files."""

    def __init__(self, chains: Mapping[str, Sequence[tuple[str, ...]]]) -> None:
        self._chains = chains

    @classmethod
    def from_directory(cls, path: Path) -> VomsDirectory:
        """Read a ``vomsdir``. Certificates in it instead of ``.lsc`` files are not used.

        Raises:
            ConfigurationError: no directory.
        """
        if not path.is_dir():
            raise ConfigurationError(f"the VOMS directory {path} does not exist")
        chains: dict[str, list[tuple[str, ...]]] = {}
        for file in sorted(path.glob("*/*.lsc")):
            lines = [line.strip() for line in read_public(file).decode("utf-8", "replace").splitlines()]
            entry = tuple(line for line in lines if line and not line.startswith(("#", "-")))
            chains.setdefault(file.parent.name, []).append(entry)
        return cls(chains)

    def allows(self, vo: str, chain: tuple[str, ...]) -> bool:
        """Whether these DNs, server first and then its CAs, stand for the VO."""
        return chain in self._chains.get(vo, ())


def attribute_certificates(chain: Sequence[x509.Certificate]) -> tuple[AttributeCertificate, ...]:
    """The ACs in a chain, unverified: of the leaf-most proxy that has some. Empty for a plain proxy.

    Raises:
        VomsError: the extension cannot be read.
    """
    for certificate in chain:
        for extension in facts.extensions_of(certificate):
            if extension.oid == AC_SEQUENCE:
                value = cast("x509.UnrecognizedExtension", extension.value).value
                return tuple(_parse_all(value))
    return ()


def verify_attributes(
    chain: Sequence[x509.Certificate], *, vomsdir: VomsDirectory, trust: TrustStore, now: datetime
) -> tuple[VomsAttributes, ...]:
    """The attributes in a proxy chain that ``verify_chain`` has accepted; one entry per VO.

    Any AC that does not verify is an error, so that nobody gets another role than asked for.

    Raises:
        VomsError: time, holder, issuer, signature or the VO's ``.lsc`` do not fit; says which.
    """
    return tuple(_verify(ac, chain, vomsdir, trust, now) for ac in attribute_certificates(chain))


def _verify(
    ac: AttributeCertificate,
    chain: Sequence[x509.Certificate],
    vomsdir: VomsDirectory,
    trust: TrustStore,
    now: datetime,
) -> VomsAttributes:
    if not ac.not_before <= now <= ac.not_after:
        raise VomsError(f"the VOMS attributes of {ac.vo} are valid from {ac.not_before} to {ac.not_after}; renew them")
    eec = next((item for item in chain if facts.proxy_cert_info(item) is None), None)
    if eec is None or (ac.holder_issuer, ac.holder_serial) != (raw_names(eec)[0], eec.serial_number):
        raise VomsError(f"the VOMS attributes of {ac.vo} were given to another certificate")
    if not ac.certificates or raw_names(ac.certificates[0])[1] != ac.issuer:
        raise VomsError(f"the VOMS attributes of {ac.vo} come without their issuer's certificate")
    server = ac.certificates[0]
    digest = _DIGESTS.get(ac.algorithm)
    if digest is None or not facts.signature_is_by(facts.public_key(server), ac.signature, ac.signed, digest):
        raise VomsError(f"the signature of the VOMS attributes of {ac.vo} is wrong or too weak")
    try:
        verified = verify_chain(ac.certificates, trust=trust, now=now, policy=_HOST_POLICY)
    except ChainError as error:
        raise VomsError(f"the VOMS server of {ac.vo} is not trusted: {error}") from error
    if verified.proxies:
        raise VomsError(f"the VOMS attributes of {ac.vo} are signed by a proxy")
    names = (subject_dn(server), subject_dn(verified.ca))
    if not vomsdir.allows(ac.vo, names):
        raise VomsError(f"{names[0]} may not speak for {ac.vo}; the site must check its vomsdir")
    return VomsAttributes(ac.vo, ac.fqans, ac.not_after, names[0])


def _parse_all(value: bytes) -> list[AttributeCertificate]:
    try:
        outer = der.read(value, der.SEQUENCE)
        return [_parse(item) for part in der.children(outer.content) for item in der.children(part.content)]
    except (ValueError, IndexError, RequestError, CredentialFileError) as error:
        raise VomsError("the VOMS attributes of the proxy cannot be read") from error


def _parse(item: der.Item) -> AttributeCertificate:
    info, algorithm, signature = der.children(der.expect(item, der.SEQUENCE).content)
    fields = der.children(der.expect(info, der.SEQUENCE).content)
    version, holder, issuer, signing, _serial, validity, attributes = fields[:7]
    if der.integer(version) != 1 or signing.raw != algorithm.raw or signature.content[:1] != b"\0":
        raise der.DerError("no attribute certificate of version 2, or two different algorithms")
    holder_issuer, holder_serial = _holder(holder)
    start, end = map(der.time, der.children(validity.content))
    vo, server, fqans = _attributes(attributes)
    return AttributeCertificate(
        vo=vo,
        server=server,
        fqans=fqans,
        holder_issuer=holder_issuer,
        holder_serial=holder_serial,
        issuer=_directory_name(der.children(issuer.content)[0]),
        not_before=start,
        not_after=end,
        algorithm=der.oid(der.children(algorithm.content)[0]),
        signed=info.raw,
        signature=signature.content[1:],
        certificates=_server_certificates(fields[7:]),
    )


def _holder(holder: der.Item) -> tuple[bytes, int]:
    """``baseCertificateID``: issuer and serial number of the end entity."""
    base = der.expect(der.children(holder.content)[0], 0xA0)
    names, serial = der.children(base.content)[:2]
    return _directory_name(names), der.integer(serial)


def _directory_name(names: der.Item) -> bytes:
    """The one ``directoryName`` of GeneralNames, as a DER name."""
    name = der.expect(der.read(names.content), 0xA4).content
    dn_from_der(name)
    return name


def _attributes(attributes: der.Item) -> tuple[str, str, tuple[Fqan, ...]]:
    for attribute in der.children(attributes.content):
        kind, values = der.children(attribute.content)
        if der.oid(kind) == _FQAN_ATTRIBUTE:
            authority, texts = der.children(der.read(values.content, der.SEQUENCE).content)
            uri = _uri(authority)
            vo, _, server = uri.partition("://")
            raw = [der.expect(text, der.OCTET_STRING).content.decode("ascii") for text in der.children(texts.content)]
            fqans = tuple(map(Fqan.parse, raw))
            if not fqans or any(fqan.vo != vo for fqan in fqans):
                raise der.DerError("no FQAN, or one of another VO")
            return vo, server, fqans
    raise der.DerError("no FQAN attribute")


def _uri(authority: der.Item) -> str:
    """``policyAuthority``: GeneralNames with one URI, ``vo://host:port``."""
    names: Optional[der.Item] = der.expect(authority, 0xA0)
    while names is not None and names.tag != 0x86:
        names = next(iter(der.children(names.content)), None)
    if names is None:
        raise der.DerError("no policy authority")
    return names.content.decode("ascii")


def _server_certificates(rest: Sequence[der.Item]) -> tuple[x509.Certificate, ...]:
    """The extensions: the server's certificates; a critical one that nobody here understands is an error."""
    found: tuple[x509.Certificate, ...] = ()
    for item in rest:
        if item.tag != der.SEQUENCE:
            continue
        for extension in der.children(item.content):
            kind, *middle, value = der.children(extension.content)
            name = der.oid(kind)
            critical = bool(middle) and middle[0].content == b"\xff"
            if critical and name not in _KNOWN_CRITICAL:
                raise der.DerError(f"a critical extension {name}")
            if name == _CERT_LIST:
                lists = der.children(der.read(der.expect(value, der.OCTET_STRING).content, der.SEQUENCE).content)
                blocks = [block.raw for part in lists for block in der.children(part.content)]
                found = tuple(pem.parse_certificates(blocks, encoding="DER"))
    return found
