"""What of a request's path is written down."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.core.secret import Secret
from airpanda.dispatcher.access_log import PathsOnly, harmless


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/job/12/log", "/v1/job/12/log"),
        ("/v1/file/12/hist.AOD-2026_v1.root", "/v1/file/12/hist.AOD-2026_v1.root"),
        ("/v1/jobs?owner=alice&token=s3cret", "/v1/jobs"),
        ("/v1/pilot/eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxIn0.c2ln", "/v1/pilot/..."),
        (f"/v1/file/1/{'a1' * 32}/x", "/v1/file/1/.../x"),
        ("/" + "a/" * 4000, "/" + "a/" * 149 + "a"),
    ],
)
def test_paths(path: str, shown: str) -> None:
    assert harmless(path) == shown


@given(st.text(alphabet="abcXYZ019-_/?.=%", max_size=30), st.text(alphabet="/?&.x", max_size=5))
def test_no_secret_of_ours_is_ever_shown(before: str, after: str) -> None:
    secret = Secret.random().reveal()
    assert secret not in harmless(f"/{before}{secret}{after}")


def test_other_records_pass() -> None:
    for args in ((), ("a",), ({"a": 1},)):
        record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, "text", args, None)
        assert PathsOnly().filter(record)
