"""Messages between client and launcher: what must be refused, then that the fast ways say what JSON says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.glexec import wire

# Whatever a process can be given: no NUL, and undecodable bytes as surrogates.
WORDS = st.text(st.characters(blacklist_characters="\0"), max_size=50)


@pytest.mark.parametrize("header", [b"\xff\xff\xff\xff", b"\x00\x20\x00\x01"])
def test_frames_over_the_limit(header: bytes) -> None:
    with pytest.raises(ValueError, match="limit"):
        wire.body_length(header)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"argv":["\\u0000"],"environ":{}}', b'{"argv":[1],"environ":{}}']
)
def test_requests_that_are_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"request|Expecting"):
        wire.parse_request(body)


@pytest.mark.parametrize("body", [b"", b'{"exit":', b'{"exit":,"message":""}', b'{"exit":x,"message":""}'])
def test_answers_that_are_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"Expecting|invalid literal"):
        wire.parse_answer(body)


@given(st.lists(WORDS, max_size=8), st.dictionaries(WORDS, WORDS, max_size=8))
def test_a_request_made_without_json_is_the_same_json(argv: list[str], environ: dict[str, str]) -> None:
    made = wire.request_frame(argv, environ)
    assert made == wire.frame({"argv": argv, "environ": environ})
    assert wire.body_length(made[:4]) == len(made) - 4
    assert wire.parse_request(made[4:]) == (argv, environ)


@given(st.integers(0, 255), st.text(max_size=50))
def test_answers_read_back(code: int, message: str) -> None:
    assert wire.parse_answer(wire.frame({"exit": code, "message": message})[4:]) == (code, message)
    assert json.loads(wire.frame({"exit": code, "message": message})[4:]) == {"exit": code, "message": message}
