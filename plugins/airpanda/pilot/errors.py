"""The pilot's errors: PanDA's codes, each with a sentence, the party who must act, and whose fault it is.

Source: PanDA pilot error codes and shell exit codes (``facts``: pilot3 ``common/errorcodes.py``, exit codes of its
wrapper); 204-range codes of gLExec never appear here, they are translated to ``GLEXEC``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional

from airpanda.core.errors import AirpandaError
from airpanda.core.text import clean


@dataclass(frozen=True)
class Kind:
    """One kind of failure. ``blame`` is ``user``, ``site`` or ``system``; a lower ``rank`` is more telling."""

    code: int
    sentence: str
    acts: str
    blame: str
    rank: int
    source: str = "pilot"


KILLED = Kind(1144, "the job was killed on request", "the owner", "user", 10)
LEASE_LOST = Kind(1318, "the dispatcher was unreachable until the lease had ended", "the operator", "system", 20)
SIG_TERM = Kind(1201, "the batch system ended the pilot (SIGTERM)", "the site", "site", 30)
SIG_QUIT = Kind(1202, "the batch system ended the pilot (SIGQUIT)", "the site", "site", 30)
SIG_XCPU = Kind(1204, "the batch system's CPU limit was reached (SIGXCPU)", "the site", "site", 30)
SIG_USR = Kind(1207, "the batch system gave notice of the pilot's end (SIGUSR)", "the site", "site", 30)
SIG_INT = Kind(1208, "the pilot was interrupted (SIGINT)", "the site", "site", 30)
GLEXEC = Kind(1226, "the identity switch failed; the payload has not run", "the site", "site", 40)
UNPROVEN = Kind(1226, "the payload's account could not be proved from outside; it was stopped", "the site", "site", 40)
SWITCH_LATER = Kind(1226, "the identity switch failed after the payload had started", "the site", "site", 40)
LAUNCHER_LOST = Kind(1226, "the launcher was lost after the payload had started", "the site", "site", 40)
NO_PROXY = Kind(
    1163, "no valid proxy of the owner could be retrieved; the payload has not run", "the owner", "user", 41
)
MYPROXY_DOWN = Kind(1163, "the MyProxy server did not serve; the payload has not run", "the operator", "system", 41)
OWN_PROXY = Kind(1163, "the pilot's own proxy cannot be used; the payload has not run", "the site", "site", 41)
NOT_SERVED = Kind(
    1163, "the MyProxy server does not serve this pilot; the payload has not run", "the operator", "system", 41
)
WRONG_PROXY = Kind(1163, "the retrieved proxy is not the owner's; the payload has not run", "the owner", "user", 41)
SHORT_PROXY = Kind(1382, "the owner's proxy ends before the job's time limit", "the owner", "user", 42)
PROXY_ENDS_USER = Kind(1370, "the owner's proxy is about to end and could not be renewed", "the owner", "user", 43)
PROXY_ENDS_SITE = Kind(1370, PROXY_ENDS_USER.sentence, "the site", "site", 43)
PROXY_ENDS_SYSTEM = Kind(1370, PROXY_ENDS_USER.sentence, "the operator", "system", 43)
NO_SPACE = Kind(1098, "there is not enough local disk space", "the site", "site", 50)
TOO_LARGE = Kind(1319, "the job asks for more than this pilot has left", "the operator", "system", 50)
STAGE_IN = Kind(1099, "an input could not be fetched", "the operator", "system", 51)
INPUT_MISSING = Kind(1331, "a declared input does not exist", "the owner", "user", 51)
INPUT_REFUSED = Kind(1338, "the owner may not read a declared input", "the owner", "user", 51)
INPUT_NO_FILE = Kind(1103, "a declared input is no regular file", "the owner", "user", 51)
INPUT_TOO_LARGE = Kind(1168, "the inputs are larger than the job's disk limit", "the owner", "user", 51)
INPUT_WRONG = Kind(1171, "a declared input is not what was declared", "the owner", "user", 51)
INPUT_DAMAGED = Kind(1171, "an input did not arrive as it was declared", "the operator", "system", 51)
INPUT_CHANGES = Kind(1099, "an input changes while it is read", "the owner", "user", 51)
STAGE_IN_TIMEOUT = Kind(1151, "an input did not arrive in time", "the operator", "system", 51)
STAGE_IN_UNTRUSTED = Kind(1099, "an input's storage is not trusted on this node", "the site", "site", 51)
NO_PROTOCOL = Kind(1313, "this node cannot move files in the way that a URL asks for", "the site", "site", 51)
NO_ACCOUNT = Kind(
    1338, "without a switch of accounts no files of the node are opened for an owner; choose a queue with a switch",
    "the owner", "user", 51,
)  # fmt: skip
MEMORY = Kind(1212, "the payload used more memory than the job asked for", "the owner", "user", 60)
WALLTIME = Kind(1213, "the payload reached the job's time limit", "the owner", "user", 61)
SANDBOX_TOO_LARGE = Kind(1104, "the sandbox grew over the job's disk limit", "the owner", "user", 60)
LOOPING = Kind(1150, "the payload makes no progress", "the owner", "user", 62)
PAYLOAD = Kind(0, "the payload failed", "the owner", "user", 70, "exe")
NOT_EXECUTABLE = Kind(1305, "the command could not be executed on the node", "the owner", "user", 69)
OUTPUT_MISSING = Kind(1165, "a declared output is missing", "the owner", "user", 80)
OUTPUT_TOO_LARGE = Kind(1124, "an output is larger than the job's disk limit", "the owner", "user", 81)
OUTPUT_REFUSED = Kind(1383, "the owner may not store an output where it is wanted", "the owner", "user", 82)
NO_DESTINATION = Kind(1137, "an output cannot lie where it is wanted", "the owner", "user", 82)
NO_REMOTE_SPACE = Kind(1333, "there is no space where an output is wanted", "the owner", "user", 82)
OUTPUT_DAMAGED = Kind(1172, "an output is not stored as it was sent", "the operator", "system", 82)
STAGE_OUT_TIMEOUT = Kind(1152, "an output could not be stored in time", "the operator", "system", 82)
STAGE_OUT_UNTRUSTED = Kind(1137, "an output's storage is not trusted on this node", "the site", "site", 82)
STAGE_OUT = Kind(1137, "an output could not be stored", "the operator", "system", 82)
PILOT_ERROR = Kind(1301, "the pilot failed", "the operator", "system", 90)

HANDED_BACK = (GLEXEC, UNPROVEN, MYPROXY_DOWN, NOT_SERVED, OWN_PROXY, NO_SPACE, TOO_LARGE)
"""Before the payload has run its owner has nothing to regret of these: the job goes back unharmed. What the owner must
mend (a missing, destroyed, short credential) is not among them: another node would not help."""
SIGNALS = (SIG_TERM, SIG_INT, SIG_QUIT, SIG_XCPU, SIG_USR)
THE_PAYLOADS_END = (PAYLOAD, NOT_EXECUTABLE)
"""What a payload ends with that does not find what it needs: its owner's fault, or that of a node without it."""
THE_NODES_OWN = (UNPROVEN, OWN_PROXY)
"""No other job would fare better on this node."""
NOBODYS = (LAUNCHER_LOST,)
"""No trouble of the owner's either, so nobody's jobs are avoided: the node's own check tells whether it goes on."""

# Shell exit codes; what each means is in ``EXITS``.
EXIT_OK = 0
EXIT_GENERAL = 65
EXIT_NO_FILE = 67
EXIT_PROXY = 68
EXIT_EXCEPTION = 70
EXIT_BENCHED = 75
EXIT_COMMUNICATION = 79

EXITS = {
    EXIT_OK: "the pilot has ended as it should: no work, no time, or drained",
    EXIT_GENERAL: "a general failure",
    EXIT_NO_FILE: "pilot.json is missing, wrong, or was taken by another pilot",
    EXIT_PROXY: "the dispatcher does not accept the pilot's token or proxy",
    EXIT_EXCEPTION: "the pilot itself failed",
    73: "the wrapper: no software, or a bundle that is not what its checksum says",
    EXIT_BENCHED: "the node is bad: the switch, a check of the site, or nobody's payload starts",
    76: "the wrapper: no usable Python",
    EXIT_COMMUNICATION: "the dispatcher was not reached",
}
"""Source: PanDA's pilot, exit codes of its wrapper; 128 + n for the end by signal n."""

_MAX_DIAG = 2000


class JobFault(AirpandaError):
    """A job cannot go on, or has gone wrong. ``code`` of the payload's own error is its exit code."""

    code = "job-fault"

    def __init__(self, kind: Kind, detail: str = "", *, number: Optional[int] = None) -> None:
        super().__init__(f"{kind.sentence}: {detail}" if detail else kind.sentence)
        self.kind = kind
        self.number = kind.code if number is None else number

    def to_wire(self) -> dict[str, Any]:
        """The message ``JobError``."""
        diag = clean(f"{self}; {self.kind.acts} must act")[:_MAX_DIAG]
        return {"source": self.kind.source, "code": self.number, "diag": diag, "blame": self.kind.blame}


def ranked(faults: Iterable[JobFault]) -> list[dict[str, Any]]:
    """All faults as messages, the most telling first; equal ones once."""
    wire = [fault.to_wire() for fault in sorted(faults, key=lambda fault: fault.kind.rank)]
    return [error for i, error in enumerate(wire) if error not in wire[:i]][:100]


def kinds() -> list[Kind]:
    """Every kind of failure that a pilot may report, the most telling first."""
    return sorted((value for value in globals().values() if isinstance(value, Kind)), key=lambda kind: kind.rank)


def table() -> str:
    """All of them, and the exit codes, as Markdown for people."""
    lines = ["| code | what | whose fault | who acts | before the payload has run |", "|---|---|---|---|---|"]
    for kind in kinds():
        back = "the job goes back unharmed" if kind in (*HANDED_BACK, *SIGNALS) else ""
        code = "the payload's" if kind is PAYLOAD else kind.code
        lines.append(f"| {code} | {kind.sentence} | {kind.blame} | {kind.acts} | {back} |")
    lines += ["", "| exit code of the pilot | what |", "|---|---|"]
    lines += [f"| {code} | {text} |" for code, text in sorted(EXITS.items())]
    return "\n".join([*lines, "| 128 + n | ended by signal n |"])
