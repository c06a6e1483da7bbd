"""Distinguished names in OpenSSL's one-line form, the form of grid-mapfiles, MyProxy and VOMS."""

from __future__ import annotations

import re
from functools import lru_cache

from cryptography import x509

from airpanda.x509 import der

# OpenSSL's short names. Source: OpenSSL crypto/objects/objects.txt.
_SHORT = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.13": "description",
    "2.5.4.15": "businessCategory",
    "2.5.4.17": "postalCode",
    "2.5.4.18": "postOfficeBox",
    "2.5.4.20": "telephoneNumber",
    "2.5.4.41": "name",
    "2.5.4.42": "GN",
    "2.5.4.43": "initials",
    "2.5.4.44": "generationQualifier",
    "2.5.4.45": "x500UniqueIdentifier",
    "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym",
    "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.3": "mail",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
    "1.2.840.113549.1.9.2": "unstructuredName",
}
_WIDE_TAGS = (0x1B, 0x1C)  # GeneralString, UniversalString
_REMEMBERED = 1024  # a verification asks for the same names a dozen times, and the next one for the CA's again
_AMBIGUOUS = re.compile(r"/[A-Za-z0-9.]+=")


def subject_dn(certificate: x509.Certificate) -> str:
    """The subject in one-line form."""
    return dn_from_der(raw_names(certificate)[1])


def issuer_dn(certificate: x509.Certificate) -> str:
    """The issuer in one-line form."""
    return dn_from_der(raw_names(certificate)[0])


@lru_cache(maxsize=_REMEMBERED)
def dn_from_der(name: bytes) -> str:
    """One-line form of a DER name, as grid-mapfiles have had it for decades: ``/CN=host/server.example``.

    The form is not one-to-one (see ``ambiguous``).

    OpenSSL 3.0.19 puts a backslash before ``/`` and ``+`` within a value, older and other releases do not;
    this form never has it, so that a DN stays the same text when a machine is updated.

    Raises:
        DerError: not a name.

    Source: OpenSSL crypto/x509/x509_obj.c (X509_NAME_oneline).
    """
    return "".join(f"/{key}={value}" for key, value in _attributes(name))


def ambiguous(name: bytes) -> bool:
    """Whether another name has the same one-line form, so that this one must not become an identity.

    Either a value reads like another attribute, as in ``CN=x/CN=Somebody Else``, or one component has several
    attributes, whose order the encoding decides and not the person.
    """
    components = der.children(der.read(name, der.SEQUENCE).content)
    if any(len(der.children(der.expect(component, der.SET).content)) != 1 for component in components):
        return True
    return any(_AMBIGUOUS.search(value) for _, value in _attributes(name))


@lru_cache(maxsize=_REMEMBERED)
def raw_names(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """Issuer and subject exactly as encoded: what RFC 5280 compares, untouched by any parser.

    Raises:
        DerError: the certificate is not DER; cannot happen for one that ``cryptography`` has parsed.
    """
    fields = der.children(der.read(certificate.tbs_certificate_bytes, der.SEQUENCE).content)
    first = 1 if fields[0].tag == 0xA0 else 0
    return fields[first + 2].raw, fields[first + 4].raw


def _attributes(name: bytes) -> list[tuple[str, str]]:
    found = []
    for rdn in der.children(der.read(name, der.SEQUENCE).content):
        for attribute in der.children(der.expect(rdn, der.SET).content):
            kind, value = der.children(der.expect(attribute, der.SEQUENCE).content)
            key = der.oid(kind)
            found.append((_SHORT.get(key, key), _printed(value)))
    return found


def _printed(value: der.Item) -> str:
    content = value.content
    if value.tag in _WIDE_TAGS and len(content) % 4 == 0:
        content = bytes(byte for byte in content if byte)
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E else f"\\x{byte:02X}" for byte in content)
