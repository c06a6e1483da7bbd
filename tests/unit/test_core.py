"""Identity, secrets, time and settings: bad input first."""

from __future__ import annotations

import json
import logging
import pickle
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.core.clock import from_wire, to_wire
from airpanda.core.errors import ConfigurationError, RequestError
from airpanda.core.identity import MAX_DN_CHARS, Fqan, check_dn
from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from airpanda.core.text import clean, whole_number, without_keys

GOOD = {"signing_key": "/k", "file_store": "/f", "include_dir": "/i"}


@pytest.mark.parametrize(
    "dn",
    ["", "Alice", "CN=Alice", "/Alice", "/CN=Alice\n/CN=root", "/CN=\x00", "/CN=a\x7f", "/CN=" + "x" * MAX_DN_CHARS],
)
def test_what_is_not_a_dn_is_refused(dn: str) -> None:
    with pytest.raises(RequestError):
        check_dn(dn)


@pytest.mark.parametrize("dn", ['/CN=O\'Neil "Q" (x)', "/DC=org/CN=J\\xC3\\xB6rg/CN=proxy; rm -rf", "/CN=Jörg"])
def test_odd_names_are_data_and_stay_as_they_are(dn: str) -> None:
    assert check_dn(dn) == dn


@pytest.mark.parametrize("text", ["", "atlas", "/", "/atlas/", "/atlas Role", "/a/Role=", "/a/Role=x/Role=y", "/a\n"])
def test_what_is_not_an_fqan_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        Fqan.parse(text)


@pytest.mark.parametrize(
    ("text", "group", "role"),
    [
        ("/atlas", "/atlas", None),
        ("/atlas/Role=NULL/Capability=NULL", "/atlas", None),
        ("/atlas/de/Role=production", "/atlas/de", "production"),
    ],
)
def test_fqans_are_read(text: str, group: str, role: str | None) -> None:
    fqan = Fqan.parse(text)
    assert (fqan.group, fqan.role, fqan.vo) == (group, role, "atlas")
    assert Fqan.parse(str(fqan)) == fqan


def test_a_secret_shows_itself_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret("a value of some length")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("t").info("%s %r {%s}", secret, secret, f"{secret} {secret!r} {[secret]}")
    assert "a value" not in caplog.text + repr(vars(type(secret)).keys())
    for leak in (pickle.dumps, json.dumps, hash):
        with pytest.raises(TypeError):
            leak(secret)


def test_secrets_compare_by_value() -> None:
    assert Secret("one") == Secret("one")
    assert Secret("one") != Secret("two")
    assert Secret("one") != "one"
    assert len(Secret.random().reveal()) == 43
    with pytest.raises(TypeError):
        Secret(1)  # type: ignore[type-var]


def test_shown_text_commands_no_terminal_and_holds_no_key() -> None:
    assert clean("\x1b]0;owned\x07\x1b[2J\x9b31m\x00a\r\nb\tc\rd\x7f") == (
        "\ufffd]0;owned\ufffd\ufffd[2J\ufffd31m\ufffda\nb\tc\ufffdd\ufffd"
    )
    for kind in ("", "RSA ", "EC ", "ENCRYPTED "):
        key = f"-----BEGIN {kind}PRIVATE KEY-----\nMIIabc\n-----END {kind}PRIVATE KEY-----"
        assert without_keys(f"a {key} b {key} c") == "a [private key removed] b [private key removed] c"
        assert without_keys(f"a {key[:-10]}") == "a [private key removed]"
    certificate = "-----BEGIN CERTIFICATE-----\nMIIabc\n-----END CERTIFICATE-----"
    assert without_keys(certificate) == certificate


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-01", "2026-01-01T00:00:00"])
def test_a_time_without_an_offset_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_wire(text)


def test_a_naive_time_never_leaves() -> None:
    with pytest.raises(ValueError, match="naive"):
        to_wire(datetime(2026, 1, 1))  # noqa: DTZ001 - the bad input itself


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5))])))
def test_times_survive_the_wire(moment: datetime) -> None:
    assert from_wire(to_wire(moment)) == moment
    assert to_wire(moment).endswith("Z")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"heartbeat": "30"}, "heartbeat"),
        ({"signing_key": ""}, "signing_key"),
        ({"lease": "soon"}, "lease"),
        ({"lease": "-1"}, "lease"),
        ({"suspect_after": "0"}, "suspect_after"),
        ({"suspect_after": "150"}, "suspect_after"),
        ({"suspect_after": "30"}, "heartbeat_interval"),
        ({"suspect_after": "120", "lease": "90"}, "lease"),
        ({"lease": "30"}, "must grow in this order"),
        ({"max_upload_bytes": "0"}, "max_upload_bytes"),
        ({"state_timeouts": "startng=60"}, "state_timeouts"),
        ({"state_timeouts": "starting=0"}, "state_timeouts"),
        ({"myproxy_servers": "myproxy.example.org"}, "myproxy_servers"),
        ({"myproxy_servers": "a:7512,,b:7512"}, "myproxy_servers"),
        ({"archive_after": "-1"}, "archive_after"),
        ({"remove_after": "inf"}, "remove_after"),
        ({"remove_after": "nan"}, "remove_after"),
        ({"archive_after": "172800", "remove_after": "86400"}, "remove_after is shorter"),
        ({"archive_after": "0", "remove_after": "86399"}, "remove_after = '86399': must be 0 .* at least 86400"),
        ({"audit_after": "7775999"}, "audit_after"),
    ],
)
def test_a_wrong_option_is_named(change: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Settings.from_options(GOOD | change)


def test_settings_have_units() -> None:
    settings = Settings.from_options(GOOD | {"lease": "90"})
    assert settings.lease == timedelta(seconds=90)
    assert settings.suspected_after == timedelta(seconds=72)
    assert Settings.from_options(GOOD).suspected_after == timedelta(minutes=2)
    assert Settings.from_options(GOOD | {"suspect_after": "60"}).suspected_after == timedelta(minutes=1)
    assert settings.heartbeat_interval == timedelta(seconds=30)
    assert settings.file_store == Path("/f")
    assert settings.myproxy_servers == ()
    assert settings.state_timeouts["starting"] == timedelta(hours=1)
    longer = Settings.from_options(GOOD | {"state_timeouts": "starting=7200, holding=60"}).state_timeouts
    assert (longer["starting"], longer["holding"]) == (timedelta(hours=2), timedelta(minutes=1))
    assert longer["activated"] == timedelta(days=7)
    assert Settings.from_options(GOOD | {"archive_after": "0", "remove_after": "86400"}).archive_after is None
    several = Settings.from_options(GOOD | {"myproxy_servers": "MyProxy.example.org:7512, [::1]:7512"})
    assert several.myproxy_servers == ("myproxy.example.org:7512", "[::1]:7512")


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1)]
    + [(other, None) for other in ("", "-1", "+1", "1.5", " 1", "1\n", "²", "٣", "9" * 19, "9" * 5000)],
)
def test_a_whole_number_is_ascii_digits(text: str, number: int | None) -> None:
    assert whole_number(text) == number
