"""What a try came to: what was moved, or one of a few reasons why it was not. No I/O."""

from __future__ import annotations

import errno
import hashlib
import zlib
from typing import Any, Optional

MISSING = "missing"
"""What is named does not exist: an input, or the place for an output."""
REFUSED = "refused"
"""The owner may not."""
NOT_A_FILE = "not-a-file"
TOO_LARGE = "too-large"
NO_SPACE = "no-space"
"""None is left where it is written to."""
MISMATCH = "mismatch"
"""What arrived is not what was declared, or not what was sent."""
CHANGED = "changed"
"""It changed, or vanished, while it was read."""
BROKEN = "broken"
"""The transfer broke off, or the other end did not serve."""
TIMEOUT = "timeout"
UNTRUSTED = "untrusted"
"""The other end is not who it should be."""
CREDENTIAL = "credential"
"""The owner's proxy was not taken."""
PROTOCOL = "protocol"
"""The other end answers what cannot be acted on."""
UNSUPPORTED = "unsupported"
"""This node has not got what the scheme needs."""
NO_OUTPUT = "no-output"
"""The payload left no such regular file."""
CRASHED = "crashed"
"""The carrier itself ended before it said what became of this one."""

REASONS = frozenset(
    {
        MISSING,
        REFUSED,
        NOT_A_FILE,
        TOO_LARGE,
        NO_SPACE,
        MISMATCH,
        CHANGED,
        BROKEN,
        TIMEOUT,
        UNTRUSTED,
        CREDENTIAL,
        PROTOCOL,
        UNSUPPORTED,
        NO_OUTPUT,
        CRASHED,
    }
)

_BY_ERRNO = {
    errno.ENOENT: MISSING,
    errno.ENOTDIR: MISSING,
    errno.EACCES: REFUSED,
    errno.EPERM: REFUSED,
    errno.EROFS: REFUSED,
    errno.ELOOP: REFUSED,
    errno.ENAMETOOLONG: REFUSED,
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EISDIR: NOT_A_FILE,
    errno.ENXIO: NOT_A_FILE,
    errno.ENODEV: NOT_A_FILE,
    errno.EFBIG: TOO_LARGE,
    errno.ETIMEDOUT: TIMEOUT,
}


class Trouble(Exception):
    """A try has failed. ``why`` is one of ``REASONS``; the text is for a person and holds no secret."""

    def __init__(self, why: str, detail: str, *, retry_after_s: Optional[float] = None) -> None:
        super().__init__(detail)
        self.why = why
        self.retry_after_s = retry_after_s

    @classmethod
    def of(cls, error: OSError, what: str) -> Trouble:
        """The trouble behind an error of the operating system."""
        return cls(_BY_ERRNO.get(error.errno or 0, BROKEN), f"{what}: {error.strerror or type(error).__name__}")


class Digest:
    """Size and checksums of bytes that pass by."""

    def __init__(self) -> None:
        self.size = 0
        self._adler32 = 1
        self._sha256 = hashlib.sha256()

    def update(self, data: bytes) -> None:
        self.size += len(data)
        self._adler32 = zlib.adler32(data, self._adler32)
        self._sha256.update(data)

    @property
    def adler32(self) -> str:
        return f"{self._adler32:08x}"

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def demand(self, expected: dict[str, Any], whose: str) -> None:
        """Compare with what is known of ``size``, ``adler32`` and ``sha256``; None is unknown.

        Raises:
            Trouble: MISMATCH.
        """
        for name in ("size", "adler32", "sha256"):
            wanted = expected.get(name)
            found = getattr(self, name)
            if wanted is not None and found != (wanted.lower() if isinstance(wanted, str) else wanted):
                raise Trouble(MISMATCH, f"its {name} is {found}, {whose} is {wanted}")

    def to_wire(self) -> dict[str, Any]:
        return {"size": self.size, "adler32": self.adler32, "sha256": self.sha256}
