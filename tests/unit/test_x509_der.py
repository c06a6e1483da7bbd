"""Times in DER, as certificates and attribute certificates may hold them: RFC 5280 section 4.1.2.5."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.x509 import der


def item(kind: int, text: bytes) -> der.Item:
    return der.Item(kind, text, b"")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (der.GENERALIZED_TIME, b""),
        (der.GENERALIZED_TIME, b"Z"),
        (der.GENERALIZED_TIME, b"20261128153000"),
        (der.GENERALIZED_TIME, b"20261128153000z"),
        (der.GENERALIZED_TIME, b"2026112815300Z"),
        (der.GENERALIZED_TIME, b"20261128153000.5Z"),
        (der.GENERALIZED_TIME, b"20261128153000+0100"),
        (der.GENERALIZED_TIME, b"2026 128153000Z"),
        (der.GENERALIZED_TIME, b"-0261128153000Z"),
        (der.GENERALIZED_TIME, b"20261328153000Z"),
        (der.GENERALIZED_TIME, b"20260231153000Z"),
        (der.GENERALIZED_TIME, b"20261128240000Z"),
        (der.GENERALIZED_TIME, b"20261128156000Z"),
        (der.GENERALIZED_TIME, b"20261128153060Z"),
        (der.GENERALIZED_TIME, b"00001128153000Z"),
        (der.GENERALIZED_TIME, "\uff12\uff10\uff12\uff161128153000Z".encode()),
        (der.GENERALIZED_TIME, b"261128153000Z"),
        (der.UTC_TIME, b"20261128153000Z"),
        (der.UTC_TIME, b"2611281530Z"),
        (der.UTC_TIME, b"26112815300Z"),
        (der.OCTET_STRING, b"20261128153000Z"),
    ],
)
def test_what_is_no_time_is_refused(kind: int, text: bytes) -> None:
    with pytest.raises(der.DerError, match="time"):
        der.time(item(kind, text))


@pytest.mark.parametrize(("text", "year"), [(b"49", 2049), (b"50", 1950), (b"99", 1999), (b"00", 2000)])
def test_the_century_of_two_digits(text: bytes, year: int) -> None:
    assert der.time(item(der.UTC_TIME, text + b"1128153001Z")) == datetime(year, 11, 28, 15, 30, 1, tzinfo=UTC)


@given(
    st.datetimes(min_value=datetime(1000, 1, 1))  # noqa: DTZ001 - Hypothesis wants naive bounds
)
def test_times_are_read_exactly(moment: datetime) -> None:
    text = f"{moment:%Y%m%d%H%M%SZ}".encode()
    assert der.time(item(der.GENERALIZED_TIME, text)) == moment.replace(microsecond=0, tzinfo=UTC)
