"""Policies, refusals, keys and the server's configuration."""

from __future__ import annotations

import re
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import chains
from support.fuzz import examples

from airpanda.core.errors import AirpandaError, ConfigurationError, CredentialError, RequestError
from airpanda.myproxy import errors, policy
from airpanda.myproxy.config import ServerPolicies
from airpanda.myproxy.keys import KeyPool
from airpanda.x509.certificates import same_key
from airpanda.x509.proxy import request_key

DNS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60).map(lambda text: f"/O=x/CN={text}")


def _original(pattern: str) -> str:
    """What the original server makes of a pattern, as a Python expression with the same meaning here."""
    out, escaped = [], False
    for character in pattern:
        if character == "\\" and not escaped:
            escaped = True
            continue
        wild = {"*": ".*", "?": ".", ".": r"\."}
        if character in wild:
            out.append(character if escaped else wild[character])
        else:
            out.append(f"\\{character}" if escaped and character != "\\" else character)
        escaped = False
    return "".join(out)


@settings(max_examples=examples(100), deadline=None)
@given(DNS, DNS)
def test_exactly_matches_one_dn_here_and_in_the_original(dn: str, other: str) -> None:
    pattern = policy.exactly(dn)
    assert policy.matches(pattern, dn)
    assert re.fullmatch(_original(pattern), dn)
    assert policy.matches(pattern, other) == (dn == other)
    assert bool(re.fullmatch(_original(pattern), other)) == (dn == other)


@pytest.mark.parametrize(
    ("pattern", "dn", "fits"),
    [
        ("*", "/O=x", True),
        ("/O=x/*", "/O=x/CN=a", True),
        ("/O=x/*", "/O=y/O=x/CN=a", False),
        ("*/CN=a", "/O=x/CN=a", True),
        ("*/CN=a", "/O=x/CN=ab", False),
        ("/CN=?", "/CN=a", True),
        ("/CN=?", "/CN=ab", False),
        ("a.b", "a.b", True),
        ("a.b", "axb", False),
        ("*a*b*", "xxaxxbxx", True),
        ("*a*b*", "xxbxxaxx", False),
        ("none", "/O=x", False),
        ("", "", True),
        (None, "/O=x", False),
    ],
)
def test_patterns(pattern: str | None, dn: str, fits: bool) -> None:
    assert policy.matches(pattern, dn) == fits


@pytest.mark.parametrize("pattern", ["(a|b)", "a+", "[a]", "a{2}", "^a", "a$", "a\\", "a\\*", r"\\w", "x" * 5000])
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(RequestError):
        policy.parse(pattern)


def test_a_hostile_pattern_costs_no_more_than_its_length() -> None:
    assert not policy.matches("*a" * 400 + "b", "a" * 1024)


@pytest.mark.parametrize("text", ["Alice", "", "/O=a\nb", "/" + "x=" * 600])
def test_what_is_no_dn(text: str) -> None:
    with pytest.raises(RequestError):
        policy.exactly(text)


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["invalid credential passphrase"], errors.WrongPassphraseError),
        (["Bad password", "invalid pass phrase"], errors.WrongPassphraseError),
        (['No credentials exist with username "a" '], errors.CredentialMissingError),
        (["Credentials do not exist. "], errors.CredentialMissingError),
        (["no credentials found for user a"], errors.CredentialMissingError),
        (['Credentials not owned by "/O=x"'], errors.NotOwnerError),
        (["'/O=x' does not own the credentials"], errors.NotOwnerError),
        (['"/O=x" not authorized by server\'s accepted_credentials policy'], errors.PolicyDeniedError),
        (["no passphrase", "authentication failed"], errors.PassphraseNeededError),
        (["credential locked", "by admin"], errors.CredentialLockedError),
        (["Pass phrase too short"], errors.MyProxyRequestError),
        (["error parsing request"], errors.MyProxyRequestError),
        (["UNKNOWN command in request"], errors.MyProxyRequestError),
        (["something new"], errors.MyProxyRefusedError),
        ([], errors.MyProxyRefusedError),
    ],
)
def test_refusals(lines: list[str], kind: type[AirpandaError]) -> None:
    assert type(errors.refusal(lines)) is kind


def test_a_refusal_names_the_policy_that_matters() -> None:
    lines = [
        '"/O=x" not authorized by server\'s default trusted_retrievers policy',
        '"/O=x" not authorized by credential\'s authorized_retrievers policy',
    ]
    error = errors.refusal(lines)
    assert isinstance(error, errors.PolicyDeniedError)
    assert isinstance(error, CredentialError)
    assert error.policy == "authorized_retrievers"
    assert "must allow it" in str(error)


def test_a_refusal_is_fit_for_a_log() -> None:
    text = str(errors.refusal(["a\x1b[31m\r\nb" + "x" * 5000] * 50))
    assert text.isprintable()
    assert len(text) < 4000


def test_each_key_is_handed_out_once() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(chains.ec_key(f"pool {len(made)}"))
        return made[-1]

    pool = KeyPool(size=3, make=make)  # type: ignore[arg-type]
    taken = [pool.take() for _ in range(10)]
    assert len({id(key) for key, _ in taken}) == 10
    for key, request in taken:
        assert same_key(request_key(request), key.public_key())
    pool.close()
    last, _ = pool.take()
    assert all(last is not key for key, _ in taken)


def test_keys_are_made_before_the_first_is_wanted() -> None:
    makers: list[str] = []
    full = threading.Event()

    def make() -> object:
        makers.append(threading.current_thread().name)
        if len(makers) == 2:
            full.set()
        return chains.ec_key(f"ahead {len(makers)}")

    pool = KeyPool(size=2, make=make)  # type: ignore[arg-type]
    assert makers == []
    pool.fill()
    pool.fill()
    assert full.wait(10)
    pool.take()
    assert set(makers[:2]) == {"proxy-keys"}
    pool.close()


def test_configuration() -> None:
    text = '# policies\naccepted_credentials "/O=a/*"\naccepted_credentials "/O=b/*"\ndefault_retrievers none\n'
    read = ServerPolicies.parse(text + "max_proxy_lifetime 12\ncert_dir /etc/certs\nrequest_timeout 5\n")
    assert read.accepted_credentials == ("/O=a/*", "/O=b/*")
    assert (read.default_retrievers, read.authorized_retrievers) == ((), ())
    assert (read.max_proxy_lifetime, read.request_timeout) == (timedelta(hours=12), timedelta(seconds=5))
    assert read.cert_dir == Path("/etc/certs")


@pytest.mark.parametrize(
    "line", ["pam required", "accepted_credentials", "max_proxy_lifetime x", 'a "b', "cert_dir a b"]
)
def test_configuration_errors_name_the_line(line: str) -> None:
    with pytest.raises(ConfigurationError, match=r"myproxy-server.config:2"):
        ServerPolicies.parse(f"\n{line}\n")
