"""The two kinds of data on a MyProxy connection, cut out of a bounded buffer: text to a NUL, and DER."""

from __future__ import annotations

from typing import Optional

from airpanda.myproxy.errors import ProtocolViolationError
from airpanda.x509 import der

MAX_BUFFER_BYTES = 4 * 1024 * 1024
MAX_ITEM_BYTES = 1024 * 1024
MAX_CERTIFICATES = 16
TEXT_START = ord("V")  # of "VERSION=": an error in place of a count byte or a request


class Buffer:
    """Bytes received and not yet used."""

    def __init__(self, limit: int = MAX_BUFFER_BYTES) -> None:
        self._data = bytearray()
        self._limit = limit
        self._seen = 0  # how far the search for a NUL has come

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Add received bytes.

        Raises:
            ProtocolViolationError: more than the limit.
        """
        if len(self._data) + len(data) > self._limit:
            raise ProtocolViolationError(f"the peer has sent a message of more than {self._limit} bytes")
        self._data += data

    def starts_with_text(self) -> Optional[bool]:
        """Whether a text message is next; None when nothing is there."""
        return self._data[0] == TEXT_START if self._data else None

    def skip_nuls(self) -> None:
        """Drop NULs in front: a TLS 1.3 server of the original sends one before everything."""
        kept = self._data.lstrip(b"\0")
        if len(kept) != len(self._data):
            self._data, self._seen = bytearray(kept), 0

    def text(self) -> Optional[bytes]:
        """The next text without its NUL, or None when it is not complete."""
        end = self._data.find(b"\0", self._seen)
        if end < 0:
            self._seen = len(self._data)
            return None
        return self.take(end + 1)[:-1]

    def item(self) -> Optional[bytes]:
        """The next DER item, or None when it is not complete.

        Raises:
            ProtocolViolationError: no DER, or over 1 MiB.
        """
        size = self._size_at(0)
        return None if size is None else self.take(size)

    def chain(self) -> Optional[list[bytes]]:
        """A count byte and as many DER items, or None when they are not complete.

        Raises:
            ProtocolViolationError: a count of 0 or over 16, no DER, or an item over 1 MiB.
        """
        if not self._data:
            return None
        count, start, ends = self._data[0], 1, []
        if not 1 <= count <= MAX_CERTIFICATES:
            raise ProtocolViolationError(
                f"the peer announces {count} certificates; 1 to {MAX_CERTIFICATES} are possible"
            )
        for _ in range(count):
            size = self._size_at(start)
            if size is None:
                return None
            ends.append((start, start + size))
            start += size
        data = self.take(start)
        return [data[begin:end] for begin, end in ends]

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, which must be there."""
        data = bytes(self._data[:size])
        del self._data[:size]
        self._seen = 0
        return data

    def peek(self, size: int) -> bytes:
        return bytes(self._data[:size])

    def _size_at(self, start: int) -> Optional[int]:
        head = bytes(self._data[start : start + 5])
        if head and head[0] != der.SEQUENCE:
            raise ProtocolViolationError("the peer sends something that is no certificate where one belongs")
        try:
            size = der.total_length(head)
        except der.DerError as error:
            raise ProtocolViolationError("the peer sends something that is no certificate where one belongs") from error
        if size is not None and size > MAX_ITEM_BYTES:
            raise ProtocolViolationError(f"the peer sends a certificate of {size} bytes")
        return size if size is not None and start + size <= len(self._data) else None


def encode_chain(chain: list[bytes]) -> bytes:
    """A count byte and the DER items.

    Raises:
        ProtocolViolationError: none, or more than 16.
    """
    if not 1 <= len(chain) <= MAX_CERTIFICATES:
        raise ProtocolViolationError(f"a chain of {len(chain)} certificates does not fit the protocol")
    return bytes([len(chain)]) + b"".join(chain)
