"""Reading credentials and making proxies: bad bytes first, then what must be inherited."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from support import chains
from support.chains import DAY, EEC_EXTENSIONS, NOW, ca, credential, ec_key, eec, key, make, name, proxy, proxy_info
from support.fuzz import examples
from support.rsa import composite_numbers, rsa_numbers, rsa_pem

from airpanda.core.errors import CredentialError, RequestError
from airpanda.core.secret import Secret
from airpanda.x509 import der, pem
from airpanda.x509.certificates import LIMITED, ProxyCertInfo, extension, not_before, proxy_cert_info
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.dn import raw_names
from airpanda.x509.errors import CredentialFileError
from airpanda.x509.proxy import create_proxy, make_request, sign_request

HOUR = timedelta(hours=1)


def _alice() -> ProxyCredential:
    return credential(eec())


def _pem(*certificates: x509.Certificate) -> bytes:
    return pem.certificates_pem(certificates)


KEY = pem.key_pem(key("Alice Example"))
CERT = _pem(eec().cert)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no certificate"),
        (b"garbage", "no certificate"),
        (KEY, "no certificate"),
        (CERT, "0 private keys"),
        (CERT + KEY + KEY, "2 private keys"),
        (CERT + pem.key_pem(key("another")), "does not belong"),
        (CERT + KEY[:-30], "inside a PEM block"),
        (CERT + KEY.replace(b"-----END", b"----END"), "PEM block"),
        (CERT + KEY + b"\0", "NUL"),
        (CERT + KEY + b"-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n", "neither certificate nor"),
        (CERT + KEY + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 2"),
        (CERT + KEY + CERT * 16, "more than 16"),
        (CERT + KEY + b" " * pem.MAX_PEM_BYTES, "longer than"),
        (CERT + pem.encrypted_key_pem(key("Alice Example"), Secret("a passphrase")), "protected by a passphrase"),
    ],
)
def test_what_is_no_credential(data: bytes, words: str) -> None:
    with pytest.raises(CredentialFileError, match=words) as caught:
        ProxyCredential.from_pem(data)
    assert "MII" not in str(caught.value)
    assert isinstance(caught.value, CredentialError)


def test_a_wrong_passphrase_is_not_repeated() -> None:
    protected = CERT + pem.encrypted_key_pem(key("Alice Example"), Secret("a passphrase"))
    with pytest.raises(CredentialFileError, match="wrong passphrase") as caught:
        ProxyCredential.from_pem(protected, Secret("canary-words"))
    assert "canary" not in repr(caught.value)
    assert ProxyCredential.from_pem(protected, Secret("a passphrase")).identity == "/O=Test Grid/CN=Alice Example"


def test_the_numbers_of_a_good_key_are_accepted() -> None:
    assert ProxyCredential.from_pem(CERT + rsa_pem(*rsa_numbers("Alice Example"))).identity.endswith("Alice Example")


@pytest.mark.parametrize("field", range(8))
@pytest.mark.parametrize("change", [1, 2, -2])
def test_a_key_with_one_number_changed_is_refused(field: int, change: int) -> None:
    numbers = rsa_numbers("Alice Example")
    numbers[field] += change
    with pytest.raises(CredentialFileError, match="private key"):
        ProxyCredential.from_pem(CERT + rsa_pem(*numbers))


def test_the_public_half_of_one_key_with_the_private_half_of_another_is_refused() -> None:
    mine, theirs = rsa_numbers("Alice Example"), rsa_numbers("another")
    with pytest.raises(CredentialFileError, match="private key"):
        ProxyCredential.from_pem(CERT + rsa_pem(*mine[:2], *theirs[2:]))


def test_a_key_with_a_composite_factor_is_refused_by_its_signature() -> None:
    """All numbers fit each other; only primality is wrong, which is not looked at."""
    with pytest.raises(CredentialFileError, match="private key"):
        pem.load_key(rsa_pem(*composite_numbers()))


def test_a_key_too_large_to_use_is_refused() -> None:
    p, q = (1 << 9000) + 1, (1 << 9001) + 1
    with pytest.raises(CredentialFileError, match="private key"):
        pem.load_key(rsa_pem(p * q, 3, 5, p, q, 1, 1, 1))


def test_an_elliptic_key_with_another_ones_public_half_is_refused() -> None:
    mine, theirs = ec_key("mine").private_numbers().private_value, ec_key("theirs").public_key()
    point = theirs.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    curve = bytes.fromhex("06082a8648ce3d030107")
    whole = der.wrap(
        der.SEQUENCE,
        bytes.fromhex("020101")
        + der.wrap(0x04, mine.to_bytes(32, "big"))
        + der.wrap(0xA0, curve)
        + der.wrap(0xA1, der.wrap(0x03, b"\0" + point)),
    )
    text = base64.encodebytes(whole)
    with pytest.raises(CredentialFileError, match="private key"):
        pem.load_key(b"-----BEGIN EC PRIVATE KEY-----\n" + text + b"-----END EC PRIVATE KEY-----\n")


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_a_damaged_rsa_key_is_refused(data: st.DataObject) -> None:
    raw = bytearray(base64.b64decode(b"".join(KEY.split(b"\n")[1:-2])))
    for place in data.draw(st.sets(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
        raw[place] ^= data.draw(st.integers(1, 255))
    block = b"-----BEGIN RSA PRIVATE KEY-----\n" + base64.encodebytes(raw) + b"-----END RSA PRIVATE KEY-----\n"
    with pytest.raises(CredentialFileError):
        ProxyCredential.from_pem(CERT + block)


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_damaged_credentials_are_an_error_or_the_same_person(data: st.DataObject) -> None:
    whole = create_proxy(_alice(), lifetime=HOUR, now=NOW, key=ec_key("fuzz")).to_pem().reveal()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    damaged = whole[:start] + data.draw(st.binary(max_size=40)) + whole[end:]
    try:
        assert ProxyCredential.from_pem(damaged).identity.startswith("/")
    except CredentialFileError:
        return


@given(st.binary(max_size=60))
def test_proxy_information_reads_anything_or_refuses(data: bytes) -> None:
    try:
        info = ProxyCertInfo.from_der(data)
    except ValueError:
        return
    assert info.path_length is None or info.path_length >= 0


def test_order_of_the_file_and_form_of_the_keys() -> None:
    made = create_proxy(_alice(), lifetime=HOUR, now=NOW, key=key("fresh"))
    text = made.to_pem().reveal()
    labels = [line for line in text.splitlines() if line.startswith(b"-----BEGIN")]
    assert labels == [
        b"-----BEGIN CERTIFICATE-----",
        b"-----BEGIN RSA PRIVATE KEY-----",
        b"-----BEGIN CERTIFICATE-----",
    ]
    again = ProxyCredential.from_pem(text)
    assert again.certificates == made.certificates
    curve = create_proxy(_alice(), lifetime=HOUR, now=NOW, key=ec_key("fresh"))
    assert b"-----BEGIN PRIVATE KEY-----" in curve.to_pem().reveal()


def test_nothing_shows_the_key() -> None:
    made = create_proxy(_alice(), lifetime=HOUR, now=NOW)
    assert "PrivateKey" not in repr(made)
    assert "PRIVATE" not in f"{made} {made.to_pem()}"


def test_identity_comes_from_the_end_entity() -> None:
    second = create_proxy(create_proxy(_alice(), lifetime=HOUR, now=NOW), lifetime=DAY, now=NOW)
    assert second.identity == "/O=Test Grid/CN=Alice Example"
    assert second.subject_dn.startswith("/O=Test Grid/CN=Alice Example/CN=")
    assert (second.is_proxy, second.is_limited, _alice().is_proxy) == (True, False, False)
    only_proxy = ProxyCredential(second.certificate, second.private_key)
    with pytest.raises(CredentialFileError, match="end-entity certificate is missing"):
        _ = only_proxy.identity


def test_a_proxy_as_globus_makes_it() -> None:
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    signer = x509.KeyUsage(True, True, True, False, False, False, False, False, False)
    extensions = [*EEC_EXTENSIONS, (usage, False), (signer, True)]
    user = make(name("Alice Example"), key("Alice Example"), ca(), extensions=extensions)
    made = create_proxy(credential(user), lifetime=HOUR, now=NOW).certificate
    info = proxy_cert_info(made)
    assert info == ProxyCertInfo("1.3.6.1.5.5.7.21.1")
    assert raw_names(made)[0] == raw_names(user.cert)[1]
    assert made.subject.rdns[-1].rfc4514_string() == f"CN={made.serial_number}"
    assert made.serial_number < 2**31
    copied = extension(made, x509.KeyUsage)
    assert copied is not None
    assert (copied.digital_signature, copied.content_commitment, copied.key_encipherment) == (True, False, True)
    assert extension(made, x509.ExtendedKeyUsage) == usage
    assert not_before(made) == NOW - timedelta(minutes=5)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (ProxyCertInfo("1.3.6.1.5.5.7.21.1"), "300c300a06082b06010505071501"),
        (ProxyCertInfo(LIMITED), "300f300d060b2b060104019b5001010109"),
        (ProxyCertInfo("1.3.6.1.5.5.7.21.1", 0), "300f020100300a06082b06010505071501"),
        (ProxyCertInfo("1.3.6.1.5.5.7.21.1", 128), "301002020080300a06082b06010505071501"),
    ],
)
def test_proxy_information_byte_by_byte(info: ProxyCertInfo, expected: str) -> None:
    assert info.to_der().hex() == expected
    assert ProxyCertInfo.from_der(bytes.fromhex(expected)) == info


def test_a_proxy_never_outlives_its_issuer() -> None:
    made = create_proxy(_alice(), lifetime=timedelta(days=1000), now=NOW)
    assert made.not_after == _alice().not_after
    short = credential(proxy(eec(), end=NOW + HOUR), eec())
    assert create_proxy(short, lifetime=DAY, now=NOW).not_after == NOW + HOUR


def test_limited_is_inherited() -> None:
    limited = create_proxy(_alice(), lifetime=HOUR, now=NOW, limited=True)
    below = create_proxy(limited, lifetime=HOUR, now=NOW)
    info = proxy_cert_info(below.certificate)
    assert info is not None
    assert info.language == LIMITED


def test_who_may_not_issue() -> None:
    with pytest.raises(CredentialError, match="has expired"):
        create_proxy(_alice(), lifetime=HOUR, now=NOW + 100 * DAY)
    with pytest.raises(CredentialError, match="not valid yet"):
        create_proxy(_alice(), lifetime=HOUR, now=NOW - 100 * DAY)
    with pytest.raises(CredentialError, match="certificate authority"):
        create_proxy(credential(ca()), lifetime=HOUR, now=NOW)
    last = create_proxy(_alice(), lifetime=HOUR, now=NOW, path_length=1)
    below = create_proxy(last, lifetime=HOUR, now=NOW)
    with pytest.raises(CredentialError, match="path length"):
        create_proxy(below, lifetime=HOUR, now=NOW)
    usage = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
    mute = make(name("Alice Example"), key("x"), ca(), extensions=[*EEC_EXTENSIONS, (usage, True)])
    with pytest.raises(CredentialError, match="keyUsage"):
        create_proxy(credential(mute), lifetime=HOUR, now=NOW)


def test_what_may_not_be_asked_for() -> None:
    with pytest.raises(RequestError, match="lifetime"):
        create_proxy(_alice(), lifetime=timedelta(0), now=NOW)
    with pytest.raises(RequestError, match="negative"):
        create_proxy(_alice(), lifetime=HOUR, now=NOW, path_length=-1)
    with pytest.raises(RequestError, match="1024 bits"):
        create_proxy(_alice(), lifetime=HOUR, now=NOW, key=key("weak", 1024))


def test_delegation() -> None:
    fresh = key("fresh")
    chain = sign_request(_alice(), make_request(fresh), lifetime=HOUR, now=NOW)
    parsed = pem.parse_certificates(chain, encoding="DER")
    assert ProxyCredential(parsed[0], fresh, tuple(parsed[1:])).identity == "/O=Test Grid/CN=Alice Example"
    assert parsed[-1] == eec().cert


def test_requests_that_prove_nothing() -> None:
    request = make_request(key("fresh"))
    for bad in (b"", b"garbage", request[:-1], request[:-1] + bytes([request[-1] ^ 1])):
        with pytest.raises(RequestError):
            sign_request(_alice(), bad, lifetime=HOUR, now=NOW)
    with pytest.raises(RequestError, match="1024 bits"):
        sign_request(_alice(), make_request(key("weak", 1024)), lifetime=HOUR, now=NOW)


def test_the_request_has_version_0() -> None:
    request = make_request(ec_key("fresh"))
    info = x509.load_der_x509_csr(request).tbs_certrequest_bytes
    assert info[info.index(b"\x02") : info.index(b"\x02") + 3] == b"\x02\x01\x00"


def test_a_chain_with_the_ca_in_it_is_cut_at_the_end_entity() -> None:
    with_ca = credential(eec(), ca())
    assert create_proxy(with_ca, lifetime=HOUR, now=NOW).chain == (eec().cert,)


def test_encrypted_keys_are_pbes2_with_aes_256() -> None:
    text = pem.encrypted_key_pem(key("fresh"), Secret("a passphrase"))
    der_key = serialization.load_pem_private_key(text, b"a passphrase")
    assert der_key.private_numbers() == key("fresh").private_numbers()  # type: ignore[union-attr]
    assert text.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    body = base64.b64decode(b"".join(text.splitlines()[1:-1]))
    assert bytes.fromhex("060960864801650304012a") in body  # aes-256-cbc


def test_broken_proxy_information_is_found_when_read() -> None:
    broken = x509.UnrecognizedExtension(chains.PROXY_CERT_INFO, b"\x30\x00")
    leaf = proxy(eec(), extensions=[(broken, True)])
    text = _pem(leaf.cert) + pem.key_pem(leaf.key) + CERT
    with pytest.raises(CredentialFileError, match="certificate 1"):
        ProxyCredential.from_pem(text)


def test_a_path_length_in_the_middle_counts_from_there() -> None:
    first = proxy(eec(), extensions=[proxy_info(path_length=2)])
    second = create_proxy(credential(first, eec()), lifetime=HOUR, now=NOW)
    third = create_proxy(second, lifetime=HOUR, now=NOW)
    with pytest.raises(CredentialError, match="path length"):
        create_proxy(third, lifetime=HOUR, now=NOW)
