"""Names, signing policies and DER: text and bytes only."""

from __future__ import annotations

import contextlib

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chains import name
from support.fuzz import examples

from airpanda.x509 import der
from airpanda.x509.dn import ambiguous, dn_from_der
from airpanda.x509.policy import SigningPolicy

CA = "/O=Test Grid/CN=Test CA"


def test_one_line_form() -> None:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "org"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.example"),
            x509.NameAttribute(ObjectIdentifier("1.2.3.4"), "odd"),
            x509.NameAttribute(NameOID.COMMON_NAME, "Jürgen\n~"),
        ]
    )
    line = "/DC=org/C=DE/emailAddress=a@b.example/1.2.3.4=odd/CN=J\\xC3\\xBCrgen\\x0A~"
    assert dn_from_der(subject.public_bytes()) == line


def test_names_that_read_like_others() -> None:
    assert ambiguous(name("x/CN=Bob Example").public_bytes())
    assert ambiguous(name("/O=Other").public_bytes())
    assert not ambiguous(name("host/server.example").public_bytes())
    assert not ambiguous(name("Robot: https://example/?a=b").public_bytes())


def test_a_component_with_several_attributes_is_no_name_for_anybody() -> None:
    """The encoding sorts them, so the same text can be another person's two components."""
    pair = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Grid"), x509.NameAttribute(NameOID.COMMON_NAME, "Bob")]
    together = x509.Name([x509.RelativeDistinguishedName(pair)])
    assert ambiguous(together.public_bytes())
    assert not ambiguous(x509.Name(pair).public_bytes())


@pytest.mark.parametrize("data", [b"", b"\x30", b"\x30\x80\x00\x00", b"\x30\x05\x00", b"\x31\x00", b"\x30\x02\x30\x00"])
def test_what_is_no_name(data: bytes) -> None:
    with pytest.raises(der.DerError):
        dn_from_der(data)


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=80))
def test_names_read_anything_or_refuse(data: bytes) -> None:
    with contextlib.suppress(der.DerError):
        assert isinstance(dn_from_der(data), str)


@pytest.mark.parametrize(
    ("prefix", "length"),
    [(b"", None), (b"\x30", None), (b"\x30\x05", 7), (b"\x30\x81", None), (b"\x30\x81\x80", 131)],
)
def test_length_of_an_item_from_its_first_bytes(prefix: bytes, length: int | None) -> None:
    assert der.total_length(prefix) == length


@pytest.mark.parametrize(
    "prefix", [b"\x30\x80", b"\x30\x84\x00\x00\x00\x01", b"\x30\x81\x05", b"\x30\x82\x00\xff", b"\x1f\x01"]
)
def test_lengths_that_der_forbids(prefix: bytes) -> None:
    with pytest.raises(der.DerError):
        der.total_length(prefix)


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=300), st.integers(0, 30))
def test_wrap_and_read(content: bytes, tag: int) -> None:
    assert der.read(der.wrap(tag, content)).content == content


def test_numbers_are_bounded() -> None:
    with pytest.raises(der.DerError):
        der.oid(der.read(der.wrap(der.OID, b"\x81" * 100 + b"\x01")))
    with pytest.raises(der.DerError):
        der.integer(der.read(der.wrap(der.INTEGER, b"\x01" * 100)))
    assert der.integer(der.read(b"\x02\x01\xff")) == -1
    assert der.oid(der.read(bytes.fromhex("06082b06010505071501"))) == "1.3.6.1.5.5.7.21.1"


def _policy(conditions: str) -> SigningPolicy:
    text = f" access_id_CA  X509  '{CA}'\n pos_rights globus CA:sign\n cond_subjects globus {conditions}\n# end\n"
    return SigningPolicy.parse(text)


@pytest.mark.parametrize("conditions", ["'\"/O=Test Grid/*\"'", '\'"/O=Other/*" "/O=Test Grid/*"\''])
def test_signing_policy(conditions: str) -> None:
    policy = _policy(conditions)
    assert policy.allows(CA, "/O=Test Grid/CN=Alice")
    assert not policy.allows(CA, "/O=Test GridX/CN=Alice")
    assert not policy.allows(CA, "/O=test grid/CN=Alice")
    assert not policy.allows("/O=Test Grid/CN=Other CA", "/O=Test Grid/CN=Alice")


def test_signing_policy_patterns_are_no_regular_expressions() -> None:
    policy = _policy("'\"/O=a.b(c)/CN=?\"'")
    assert policy.allows(CA, "/O=a.b(c)/CN=x")
    assert not policy.allows(CA, "/O=aXb(c)/CN=x")
    assert not policy.allows(CA, "/O=a.b(c)/CN=xy")


def test_signing_policy_mail_addresses_have_two_names() -> None:
    assert _policy("'\"/O=x/Email=*\"'").allows(CA, "/O=x/emailAddress=a@b")


def test_a_policy_without_the_right_to_sign_allows_nothing() -> None:
    for rights in ("", "neg_rights globus CA:sign\n", "pos_rights globus CA:other\n"):
        text = f"access_id_CA X509 '{CA}'\n{rights}cond_subjects globus '\"*\"'\n"
        assert not SigningPolicy.parse(text).allows(CA, "/O=x")


@pytest.mark.parametrize("text", ["access_id_CA X509", "unknown a b", "access_id_CA X509 'open", "a b c d"])
def test_what_is_no_signing_policy(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        SigningPolicy.parse(text)
