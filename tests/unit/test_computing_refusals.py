"""What every element refuses by itself, and what silence means."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from support.chains import credential, eec

from airpanda.computing.elements import (
    BUSY_RETRY_S,
    CECredentialError,
    CEUnavailableError,
    Handle,
    InvalidDescriptionError,
    Limits,
    PilotBatch,
    SubmitUncertainError,
    ThrottledError,
)
from airpanda.computing.queues import parse_queue
from airpanda.computing.refusals import (
    check_fresh,
    check_handles,
    check_outlives,
    check_room,
    check_size,
    given,
    lost,
    parsed,
    retry_after_s,
)
from airpanda.core.secret import Secret

LIMITS = Limits(max_batch=2, max_handles=3)
QUEUE = """
[queue]
name = "K"
[ce]
kind = "kubernetes"
url = "https://k8s.example.org"
ca_file = "/ca.pem"
namespace = "ns"
image = "i"
conn_id = "k8s_token"
[pilot]
code = "/opt/airpanda"
dispatcher_url = "https://panda.example.org"
ca_dir = "/ca"
proxy = "/proxy"
"""


def test_what_one_call_may_carry() -> None:
    check_size(PilotBatch("t", dict.fromkeys(range(2), Secret("x"))), LIMITS)
    check_handles([Handle("x")] * 3, LIMITS)
    with pytest.raises(InvalidDescriptionError, match="3 pilots exceed the limit of 2"):
        check_size(PilotBatch("t", dict.fromkeys(range(3), Secret("x"))), LIMITS)
    with pytest.raises(InvalidDescriptionError, match="4 handles exceed the limit of 3"):
        check_handles([Handle("x")] * 4, LIMITS)


def test_handles_are_of_one_form_from_their_first_character_to_their_last() -> None:
    pattern = re.compile(r"([0-9]+)@([a-z]+)")
    assert [match.groups() for match in parsed([Handle("7@a"), Handle("8@b")], pattern, "a test")] == [
        ("7", "a"),
        ("8", "b"),
    ]
    for bad in ("", "7", "7@a\n", " 7@a", "7@a;id"):
        with pytest.raises(InvalidDescriptionError, match=r"is no handle of a test"):
            parsed([Handle("7@a"), Handle(bad)], pattern, "a test")


def test_the_last_place_is_given_away_and_no_more() -> None:
    check_room("e", busy=3, wanted=2, limit=5)
    with pytest.raises(ThrottledError) as caught:
        check_room("e", busy=4, wanted=2, limit=5)
    assert str(caught.value) == "e: 4 pilots are there and 2 more would exceed [ce] max_pilots = 5"
    assert caught.value.retry_after_s == BUSY_RETRY_S


def test_who_has_no_secret_is_told_which_connection_lacks_it() -> None:
    queue = parse_queue(QUEUE, "K.toml")
    assert given(queue, "", "the token") == ""
    with pytest.raises(CECredentialError) as caught:
        given(queue, None, "the token", ", as its password")
    assert str(caught.value) == "the queue K needs the token of the connection 'k8s_token', as its password"


def test_a_credential_must_be_fresh_and_outlive_a_pilot() -> None:
    robot = credential(eec())
    end = robot.not_after
    check_fresh("e", robot, end - timedelta(seconds=1))
    check_outlives("e", robot, end - timedelta(hours=1), timedelta(hours=1))
    with pytest.raises(CECredentialError, match=r"is over; the old one stays at e$"):
        check_fresh("e", robot, end)
    with pytest.raises(CECredentialError, match=r"^e: .* ends before a pilot of 1:00:00 would; its owner must renew"):
        check_outlives("e", robot, end - timedelta(hours=1, seconds=-1), timedelta(hours=1))


def test_silence_is_uncertain_for_a_submission_only() -> None:
    assert type(lost(True, "gone")) is SubmitUncertainError
    assert type(lost(False, "gone")) is CEUnavailableError


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("5", 5.0), ("0", 0.0), ("9" * 18, 3600.0)]
    + [(other, BUSY_RETRY_S) for other in ("", "9" * 400, "-1", "1.5", "²", "nan", "Wed, 21 Oct 2026 07:28:00 GMT")],
)
def test_how_long_a_ce_asks_to_wait(header: str, seconds: float) -> None:
    assert retry_after_s(header) == seconds
