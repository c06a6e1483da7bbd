"""gLExec's contract: names of environment variables, and exit codes.

Source: gLExec 0.9 manual pages glexec(1) and glexec.conf(5).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Optional

from airpanda.core.errors import IdentitySwitchError

CLIENT_CERT = "GLEXEC_CLIENT_CERT"
SOURCE_PROXY = "GLEXEC_SOURCE_PROXY"
TARGET_PROXY = "GLEXEC_TARGET_PROXY"
ENVIRONMENT = "GLEXEC_ENV"
LOG_ID = "GLEXEC_ID"
MODE, GET_ACCOUNT = "GLEXEC_MODE", "lcmaps_get_account"
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

_REASONS = {
    CLIENT_ERROR: "the pilot must correct its proxy, its place or the command",
    INTERNAL_ERROR: "the site must correct the launcher's configuration",
    NOT_AUTHORISED: "the site does not accept or map this proxy",
    EXEC_FAILED: "the command cannot be executed by the target account",
}


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
