"""Bearer tokens: what is refused, and what a valid one says."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from airpanda.core.errors import ConfigurationError, NotAuthorisedError
from airpanda.core.secret import Secret
from airpanda.dispatcher.tokens import CLIENT_AUDIENCE, ClientIdentity, Issuer, PilotIdentity, create_key
from airpanda.dispatcher.verbs import Verb, demands, verb_of

NOW = datetime(2026, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    create_key(tmp_path / "key.pem")
    return Issuer(tmp_path / "key.pem")


def b64(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_what_valid_tokens_say(issuer: Issuer) -> None:
    begin, end = NOW.timestamp(), (NOW + HOUR).timestamp()
    for _ in range(2):  # the second time from memory
        pilot = issuer.verify_pilot(issuer.pilot_token(7, "DEMO", HOUR, NOW), NOW)
        assert pilot == PilotIdentity(7, "DEMO", pilot.token_id, begin, end)
        token = issuer.client_token("dags", ["alice"], ["*"], HOUR, NOW)
        client = issuer.verify_client(token, NOW)
        assert client == ClientIdentity("dags", frozenset({"alice"}), None, False, client.token_id, begin, end)
    assert len({pilot.token_id, client.token_id, issuer.verify_client(token, NOW).token_id}) == 2


def test_what_is_remembered_is_checked_again(issuer: Issuer) -> None:
    token = issuer.pilot_token(7, "DEMO", HOUR, NOW)
    issuer.verify_pilot(token, NOW)
    with pytest.raises(NotAuthorisedError, match="expired"):
        issuer.verify_pilot(token, NOW + HOUR)
    for _ in range(2):
        with pytest.raises(NotAuthorisedError, match="not one of"):
            issuer.verify_client(token, NOW)
        with pytest.raises(NotAuthorisedError, match="not one of"):
            issuer.verify_pilot(Secret(token.reveal() + "x"), NOW)
    assert issuer.whose(Secret("x"), NOW) is None


def test_sending_pilots_is_a_right_of_its_own(issuer: Issuer) -> None:
    for asked in (True, False):
        token = issuer.client_token("dags", ["*"], ["*"], HOUR, NOW, pilots=asked)
        assert issuer.verify_client(token, NOW).pilots is asked
    for odd in ("yes", 1, [True], None):
        claims = {"aud": CLIENT_AUDIENCE, "sub": "dags", "owners": ["*"], "queues": ["*"], "pilots": odd}
        assert issuer.verify_client(issuer._mint(claims, HOUR, NOW), NOW).pilots is False


def test_looking_only_is_what_anything_odd_means(issuer: Issuer) -> None:
    for asked in (True, False):
        token = issuer.client_token("shift", ["*"], ["*"], HOUR, NOW, pilots=True, read_only=asked)
        identity = issuer.verify_client(token, NOW)
        assert (identity.read_only, identity.pilots) == (asked, not asked)
    for odd in ("no", 0, [], None):
        claims = {"aud": CLIENT_AUDIENCE, "sub": "shift", "owners": ["*"], "queues": ["*"], "read_only": odd}
        assert issuer.verify_client(issuer._mint(claims, HOUR, NOW), NOW).read_only is True


def test_verbs_are_all_that_is_allowed_and_unknown_ones_are_none(issuer: Issuer) -> None:
    assert issuer.verify_client(issuer.client_token("c", ["*"], ["*"], HOUR, NOW), NOW).verbs is None
    for named in ((), {Verb.KILL}, set(Verb)):
        token = issuer.client_token("c", ["*"], ["*"], HOUR, NOW, pilots=True, verbs=named)
        identity = issuer.verify_client(token, NOW)
        assert (identity.verbs, identity.pilots) == (frozenset(named), Verb.PILOTS in named)
    for odd, known in (("kill", ()), (None, ()), ({"kill": 1}, ()), (["kill", "KILL", 7, "*", ["read"]], (Verb.KILL,))):
        claims = {"aud": CLIENT_AUDIENCE, "sub": "c", "owners": ["*"], "queues": ["*"], "pilots": True, "verbs": odd}
        identity = issuer.verify_client(issuer._mint(claims, HOUR, NOW), NOW)
        assert (identity.verbs, identity.pilots) == (frozenset(known), False)


def test_a_route_says_its_verb_once() -> None:
    async def endpoint() -> None: ...

    assert (verb_of(endpoint, "POST"), verb_of(endpoint, "GET"), verb_of(None, "PUT")) == (None, Verb.READ, None)
    demands(Verb.KILL)(endpoint)
    assert verb_of(endpoint, "GET") is Verb.KILL
    with pytest.raises(TypeError, match="demands kill already"):
        demands(Verb.READ)(endpoint)


def test_the_other_audience_is_refused(issuer: Issuer) -> None:
    with pytest.raises(NotAuthorisedError):
        issuer.verify_client(issuer.pilot_token(7, "DEMO", HOUR, NOW), NOW)
    with pytest.raises(NotAuthorisedError):
        issuer.verify_pilot(issuer.client_token("dags", ["*"], ["*"], HOUR, NOW), NOW)


def test_an_expired_token_is_refused_at_its_last_second(issuer: Issuer) -> None:
    token = issuer.pilot_token(7, "DEMO", HOUR, NOW)
    issuer.verify_pilot(token, NOW + HOUR - timedelta(seconds=1))
    with pytest.raises(NotAuthorisedError, match="expired"):
        issuer.verify_pilot(token, NOW + HOUR)


def test_a_token_of_another_key_is_refused(issuer: Issuer, tmp_path: Path) -> None:
    create_key(tmp_path / "other.pem")
    with pytest.raises(NotAuthorisedError):
        issuer.verify_pilot(Issuer(tmp_path / "other.pem").pilot_token(7, "DEMO", HOUR, NOW), NOW)


def test_tampered_and_forged_tokens_are_refused(issuer: Issuer) -> None:
    head, body, signature = issuer.pilot_token(7, "DEMO", HOUR, NOW).reveal().split(".")
    claims = jwt.decode(f"{head}.{body}.{signature}", options={"verify_signature": False})
    other = b64(claims | {"sub": "8"})
    public = issuer._public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    forged = [
        f"{head}.{other}.{signature}",
        f"{b64({'alg': 'none', 'typ': 'JWT'})}.{other}.",
        jwt.encode(claims, public + b"\0" * 32, algorithm="HS256"),
        jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
        f"{head}.{body}",
        f"{head}.{body}.{signature[:-4]}AAAA",
        "",
        "..",
        "x" * 10_000,
        "é.é.é",
    ]
    for token in forged:
        with pytest.raises(NotAuthorisedError):
            issuer.verify_pilot(Secret(token), NOW)


@pytest.mark.parametrize("subject", ["", "-7", "seven", "\uff17", "7.0"])
def test_a_pilot_token_needs_a_number(issuer: Issuer, subject: str) -> None:
    token = issuer._mint({"aud": "urn:airpanda:pilot", "sub": subject, "queue": "DEMO"}, HOUR, NOW)
    with pytest.raises(NotAuthorisedError):
        issuer.verify_pilot(token, NOW)


@pytest.mark.parametrize("owners", [None, "*", ["*", 1], {"*": 1}])
def test_an_unreadable_scope_allows_nobody(issuer: Issuer, owners: object) -> None:
    claims = {"aud": CLIENT_AUDIENCE, "sub": "dags", "owners": owners, "queues": []}
    assert issuer.verify_client(issuer._mint(claims, HOUR, NOW), NOW).owners == frozenset()


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Issuer(path)
    create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        create_key(path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Issuer(path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(ConfigurationError, match="no unencrypted PEM key"):
        Issuer(path)
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem)
    with pytest.raises(ConfigurationError, match="no Ed25519 key"):
        Issuer(path)
