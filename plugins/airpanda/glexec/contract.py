"""gLExec's contract: names of environment variables, exit codes, and the wrapped payload environment.

Source: gLExec 0.9 manual pages glexec(1) and glexec.conf(5); ``glexec_wrapenv.pl`` and ``glexec_unwrapenv.pl``.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import signal
import zlib
from collections.abc import Collection, Mapping
from typing import Optional

from airpanda.core.errors import IdentitySwitchError, RequestError

CLIENT_CERT = "GLEXEC_CLIENT_CERT"
SOURCE_PROXY = "GLEXEC_SOURCE_PROXY"
TARGET_PROXY = "GLEXEC_TARGET_PROXY"
ENVIRONMENT = "GLEXEC_ENV"
LOG_ID = "GLEXEC_ID"
RECORD = "GLEXEC_RECORD"
"""Our extension: absolute path of a new file that receives one JSON line at the start and one at the end, and now and
then one in between about what only root can see of a payload that runs."""
NO_TARGET_PROXY = "/dev/null"

CLIENT_ERROR = 201
INTERNAL_ERROR = 202
NOT_AUTHORISED = 203
PAYLOAD_CODE_TAKEN = 204
EXEC_FAILED = 126
LOST = 137
"""The launcher was killed or failed after the payload had started: it is a kill by signal 9, as it is for the payload,
whose namespace ends with it. Never 202, by which a caller knows that nothing has run."""
LAUNCHER_CODES = frozenset({CLIENT_ERROR, INTERNAL_ERROR, NOT_AUTHORISED, PAYLOAD_CODE_TAKEN})

LOCATION_VARIABLES = ("OSG_GLEXEC_LOCATION", "GLEXEC_LOCATION", "GLITE_LOCATION")

MAX_ENVIRONMENT_BYTES = 256 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NEVER_RESTORED = frozenset({"HOME", "LOGNAME", "USER", "X509_USER_PROXY", "_", "BASH_ENV", "ENV", "IFS"})
_NEVER_RESTORED_PREFIXES = ("LD_", "PYTHON", "MALLOC_", "GLEXEC_")

_REASONS = {
    CLIENT_ERROR: "the pilot must correct its proxy, its place or the command",
    INTERNAL_ERROR: "the site must correct the launcher's configuration",
    NOT_AUTHORISED: "the site does not accept or map this proxy",
    EXEC_FAILED: "the command cannot be executed by the target account",
}


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


def find_glexec(environ: Mapping[str, str]) -> Optional[str]:
    """The launcher in the order in which pilots look for it, or None where none is installed.

    ``OSG_GLEXEC_LOCATION`` is the program itself; ``GLEXEC_LOCATION``, ``GLITE_LOCATION`` and ``/usr`` hold
    ``sbin/glexec``.
    """
    candidates = [environ.get("OSG_GLEXEC_LOCATION", "")]
    candidates += [os.path.join(environ[v], "sbin/glexec") for v in LOCATION_VARIABLES[1:] if environ.get(v)]
    candidates.append("/usr/sbin/glexec")
    for path in candidates:
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def shell_code(wait_code: int) -> int:
    """A shell's exit code for ``os.waitstatus_to_exitcode``: 128 + n for death by signal n."""
    return 128 - wait_code if wait_code < 0 else wait_code


def payload_code(exit_code: int) -> int:
    """What the launcher returns for a payload: 204 when the payload itself used one of the launcher's codes."""
    return PAYLOAD_CODE_TAKEN if exit_code in LAUNCHER_CODES else exit_code


def signal_of(exit_code: int) -> Optional[int]:
    """The signal that a code of 128 + n stands for, or None."""
    number = exit_code - 128
    return number if number in {s.value for s in signal.Signals} else None


def switch_error(exit_code: int, detail: str = "") -> IdentitySwitchError:
    """The error for a launcher's own code. The caller knows that no payload was started.

    202 and 203 can be a back-end that is down for a moment, so they are ``transient``; 201 and 126 are not.
    """
    reason = _REASONS.get(exit_code, "the launcher ended without having started the payload")
    text = f"the identity switch failed with code {exit_code}: {reason}"
    if detail:
        text = f"{text} ({detail})"
    return IdentitySwitchError(text, exit_code=exit_code, transient=exit_code in (INTERNAL_ERROR, NOT_AUTHORISED))
