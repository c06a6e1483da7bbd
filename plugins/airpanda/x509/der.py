"""Just enough DER (X.690) to read names, proxy information and attribute certificates. No I/O, bounded."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import NamedTuple, Optional

SEQUENCE, SET, INTEGER, BIT_STRING, OCTET_STRING, OID = 0x30, 0x31, 0x02, 0x03, 0x04, 0x06
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
MAX_LENGTH_BYTES = 3
MAX_NUMBER_BYTES = 64
_FIRST_OF_1900S = 50


class DerError(ValueError):
    """The bytes are not DER, or not of the expected kind."""


class Item(NamedTuple):
    """One tag-length-value: its tag, its content, and all its bytes."""

    tag: int
    content: bytes
    raw: bytes


def total_length(prefix: bytes) -> Optional[int]:
    """How many bytes the item takes that starts with ``prefix``; None when the prefix is too short to tell.

    Raises:
        DerError: a tag or length that DER forbids, or an item of 16 MiB and more.
    """
    if len(prefix) < 2:
        return None
    if prefix[0] & 0x1F == 0x1F:
        raise DerError("tags above 30 are not supported")
    first = prefix[1]
    if first < 0x80:
        return 2 + first
    count = first & 0x7F
    if not 1 <= count <= MAX_LENGTH_BYTES:
        raise DerError("the length takes no or too many bytes")
    if len(prefix) < 2 + count:
        return None
    length = int.from_bytes(prefix[2 : 2 + count], "big")
    if length < 0x80 or prefix[2] == 0:
        raise DerError("the length is not in its shortest form")
    return 2 + count + length


def read(data: bytes, tag: Optional[int] = None) -> Item:
    """The one item that ``data`` holds; nothing may follow it."""
    items = children(data)
    if len(items) != 1:
        raise DerError("expected one item")
    return expect(items[0], tag)


def children(content: bytes) -> list[Item]:
    """The items that fill ``content``; linear in its length."""
    items, start = [], 0
    while start < len(content):
        size = total_length(content[start : start + 2 + MAX_LENGTH_BYTES])
        if size is None or start + size > len(content):
            raise DerError("an item is cut short")
        header = 2 if content[start + 1] < 0x80 else 2 + (content[start + 1] & 0x7F)
        end = start + size
        items.append(Item(content[start], content[start + header : end], content[start:end]))
        start = end
    return items


def expect(item: Item, tag: Optional[int]) -> Item:
    """The same item, if it has this tag."""
    if tag is not None and item.tag != tag:
        raise DerError(f"expected tag {tag:#x}, found {item.tag:#x}")
    return item


def integer(item: Item) -> int:
    content = expect(item, INTEGER).content
    if not 0 < len(content) <= MAX_NUMBER_BYTES:
        raise DerError("an empty or huge integer")
    return int.from_bytes(content, "big", signed=True)


def oid(item: Item) -> str:
    """An object identifier in dotted form."""
    content = expect(item, OID).content
    if not 0 < len(content) <= MAX_NUMBER_BYTES or content[-1] & 0x80:
        raise DerError("an unfinished or huge object identifier")
    arcs, arc = [], 0
    for byte in content:
        arc = arc << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, [first, arcs[0] - 40 * first, *arcs[1:]]))


def time(item: Item) -> datetime:
    """A GeneralizedTime in UTC and whole seconds, or a UTCTime.

    Source: RFC 5280 section 4.1.2.5. ``strptime`` would accept a month of one digit, and costs 3 ms to import.
    """
    year_digits = {GENERALIZED_TIME: 4, UTC_TIME: 2}.get(item.tag)
    if year_digits is None:
        raise DerError("expected a time")
    digits, end = item.content[:-1], item.content[-1:]
    if len(digits) != year_digits + 10 or not digits.isdigit() or end != b"Z":
        raise DerError("a time that is not in UTC and whole seconds")
    year = int(digits[:year_digits])
    if year_digits == 2:
        year += 1900 if year >= _FIRST_OF_1900S else 2000
    numbers = [int(digits[at : at + 2]) for at in range(year_digits, len(digits), 2)]
    try:
        return datetime(year, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], tzinfo=timezone.utc)
    except ValueError as error:
        raise DerError("a time that is not in UTC and whole seconds") from error


def wrap(tag: int, content: bytes) -> bytes:
    """One item around ``content``."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
