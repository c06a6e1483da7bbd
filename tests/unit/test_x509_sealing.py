"""Requests as A-REX writes them, and secrets sealed for the key of a proxy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from support.pki import Pki, pki

from airpanda.core.errors import CredentialError, RequestError
from airpanda.core.secret import Secret
from airpanda.x509 import der
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import make_request, new_key, request_key, sign_request
from airpanda.x509.sealing import seal, unseal

__all__ = ["pki"]
TOKEN = "a pilot's token, such as a JWT of several hundred characters" * 5


def test_only_the_key_of_the_proxy_opens_a_token_and_for_its_pilot_only() -> None:
    key = new_key()
    sealed = seal(key.public_key(), Secret(TOKEN), purpose="pilot 1")
    assert unseal(key, sealed, purpose="pilot 1").reveal() == TOKEN
    assert sealed != seal(key.public_key(), Secret(TOKEN), purpose="pilot 1")
    changed = sealed[:-8] + ("A" if sealed[-8] != "A" else "B") + sealed[-7:]
    for attempt in (
        (new_key(), sealed, "pilot 1"),
        (key, sealed, "pilot 2"),
        (key, changed, "pilot 1"),
        (key, "", "p"),
    ):
        with pytest.raises(CredentialError, match="cannot be opened"):
            unseal(attempt[0], attempt[1], purpose=attempt[2])
    with pytest.raises(RequestError, match="RSA"):
        seal("no key", Secret(TOKEN), purpose="p")


def version_2(csr: bytes) -> tuple[bytes, bytes]:
    """What A-REX signs, with the version 2, and the algorithm it says it does so with."""
    info, algorithm, _ = der.children(der.read(csr, der.SEQUENCE).content)
    rest = b"".join(item.raw for item in der.children(info.content)[1:])
    signed = der.wrap(der.SEQUENCE, b"\x02\x01\x02" + rest)
    return signed, algorithm.raw


def test_a_request_of_version_2_is_read_and_its_signature_is_checked(pki: Pki) -> None:
    robot = ProxyCredential.from_files(*pki.user("pilot"))
    key = new_key()
    signed, algorithm = version_2(make_request(key))
    signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    csr = der.wrap(der.SEQUENCE, signed + algorithm + der.wrap(der.BIT_STRING, b"\0" + signature))
    assert request_key(csr).public_numbers() == key.public_key().public_numbers()
    assert len(sign_request(robot, csr, lifetime=timedelta(minutes=5), now=datetime.now(UTC))) == 2
    wrong = new_key().sign(signed, padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(RequestError, match="not signed by its own key"):
        request_key(der.wrap(der.SEQUENCE, signed + algorithm + der.wrap(der.BIT_STRING, b"\0" + wrong)))
    with pytest.raises(RequestError, match="version"):
        request_key(csr.replace(b"\x02\x01\x02", b"\x02\x01\x03", 1))
    for broken in (b"", b"\x30\x00", csr[:-1], csr + b"\0"):
        with pytest.raises(RequestError):
            request_key(broken)
