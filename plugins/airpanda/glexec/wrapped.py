"""The wrapped payload environment of gLExec's contract, ``GLEXEC_ENV``.

Source: ``glexec_wrapenv.pl`` and ``glexec_unwrapenv.pl`` of gLExec 0.9.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import zlib
from collections.abc import Collection, Mapping

from airpanda.core.errors import RequestError
from airpanda.glexec.contract import ENVIRONMENT

MAX_ENVIRONMENT_BYTES = 256 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NEVER_RESTORED = frozenset({"HOME", "LOGNAME", "USER", "X509_USER_PROXY", "_", "BASH_ENV", "ENV", "IFS"})
_NEVER_RESTORED_PREFIXES = ("LD_", "PYTHON", "MALLOC_", "GLEXEC_")


def may_restore(name: str) -> bool:
    """Whether a wrapped variable may reach the payload: a plain name, and none that steers a loader or a shell."""
    return (
        _NAME.fullmatch(name) is not None
        and name not in _NEVER_RESTORED
        and not name.startswith(_NEVER_RESTORED_PREFIXES)
    )


def encode_environment(environ: Mapping[str, str], *, exclude: Collection[str] = ()) -> str:
    """The value of ``GLEXEC_ENV``: base64(zlib(" ".join(base64("KEY=value")))). Excluded names match exactly."""
    pairs = (f"{name}={value}" for name, value in environ.items() if name not in exclude)
    joined = b" ".join(base64.b64encode(os.fsencode(pair)) for pair in pairs)
    return base64.b64encode(zlib.compress(joined)).decode("ascii")


def decode_environment(text: str) -> dict[str, str]:
    """The variables of a ``GLEXEC_ENV`` that may be restored.

    Raises:
        RequestError: not the encoding, incomplete, or larger than 256 KiB when unpacked.
    """
    try:
        packed = base64.b64decode(text, validate=True)
        inflater = zlib.decompressobj()
        joined = inflater.decompress(packed, MAX_ENVIRONMENT_BYTES)
        if not inflater.eof or inflater.unused_data:
            raise RequestError(f"{ENVIRONMENT} is incomplete, followed by other data, or unpacks to over 256 KiB")
        pairs = [os.fsdecode(base64.b64decode(item, validate=True)) for item in joined.split()]
    except (binascii.Error, zlib.error, ValueError) as error:
        raise RequestError(f"{ENVIRONMENT} is not base64 of a zlib stream of base64 items") from error
    if any("=" not in pair or "\0" in pair for pair in pairs):
        raise RequestError(f"{ENVIRONMENT} holds an item that is not KEY=value")
    split = (pair.split("=", 1) for pair in pairs)
    return {name: value for name, value in split if may_restore(name)}
