"""What to do after each try: done, once more after a pause, or failed, and then whose fault it is. No I/O, no clock."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional

from airpanda.core.text import clean
from airpanda.pilot import errors
from airpanda.pilot.carrier import outcome as o
from airpanda.pilot.errors import JobFault, Kind
from airpanda.pilot.transfers.plan import Transfer

TRIES = 4
FIRST_PAUSE_S, MAX_PAUSE_S = 2.0, 60.0
_MAX_DETAIL = 600
_ADLER32, _SHA256 = re.compile(r"[0-9a-f]{8}"), re.compile(r"[0-9a-f]{64}")
_AGAIN = frozenset({o.BROKEN, o.TIMEOUT, o.CHANGED, o.MISMATCH, o.CRASHED})

_IN: dict[str, Kind] = {
    o.MISSING: errors.INPUT_MISSING,
    o.REFUSED: errors.INPUT_REFUSED,
    o.CREDENTIAL: errors.INPUT_REFUSED,
    o.NOT_A_FILE: errors.INPUT_NO_FILE,
    o.TOO_LARGE: errors.INPUT_TOO_LARGE,
    o.NO_SPACE: errors.NO_SPACE,
    o.MISMATCH: errors.INPUT_DAMAGED,
    o.CHANGED: errors.INPUT_CHANGES,
    o.TIMEOUT: errors.STAGE_IN_TIMEOUT,
    o.UNTRUSTED: errors.STAGE_IN_UNTRUSTED,
    o.UNSUPPORTED: errors.NO_PROTOCOL,
}
_OUT: dict[str, Kind] = {
    o.MISSING: errors.NO_DESTINATION,
    o.REFUSED: errors.OUTPUT_REFUSED,
    o.CREDENTIAL: errors.OUTPUT_REFUSED,
    o.NOT_A_FILE: errors.NO_DESTINATION,
    o.TOO_LARGE: errors.OUTPUT_TOO_LARGE,
    o.NO_SPACE: errors.NO_REMOTE_SPACE,
    o.MISMATCH: errors.OUTPUT_DAMAGED,
    o.TIMEOUT: errors.STAGE_OUT_TIMEOUT,
    o.UNTRUSTED: errors.STAGE_OUT_UNTRUSTED,
    o.UNSUPPORTED: errors.NO_PROTOCOL,
    o.NO_OUTPUT: errors.OUTPUT_MISSING,
}


@dataclass(frozen=True)
class Outcome:
    """What the carrier said of one try. ``why`` is empty when the file was moved, and then the rest is known."""

    why: str = ""
    detail: str = ""
    retry_after_s: Optional[float] = None
    size: int = 0
    adler32: str = ""
    sha256: str = ""


def read_outcomes(text: str, transfers: Iterable[Transfer], ended: str) -> dict[str, Outcome]:
    """The carrier's words, one outcome for each transfer. ``ended``: how it ended, told of those it left out.

    It has run as somebody else: what is not understood counts as not said.
    """
    wanted = {each.lfn for each in transfers}
    found: dict[str, Outcome] = {}
    for line in text.splitlines():
        try:
            value = json.loads(line)
            lfn, outcome = str(value["lfn"]), _outcome(value)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
        if lfn in wanted:
            found.setdefault(lfn, outcome)
    return {lfn: found.get(lfn, Outcome(o.CRASHED, ended)) for lfn in wanted}


def _outcome(value: dict[str, Any]) -> Outcome:
    if "why" in value:
        why, pause = value["why"], value.get("retry_after_s")
        detail = clean(str(value["detail"]))[:_MAX_DETAIL]
        return Outcome(
            why if why in o.REASONS else o.PROTOCOL, detail, None if pause is None else min(float(pause), MAX_PAUSE_S)
        )
    size, adler32, sha256 = int(value["size"]), str(value["adler32"]), str(value["sha256"])
    if size < 0 or _ADLER32.fullmatch(adler32) is None or _SHA256.fullmatch(sha256) is None:
        raise ValueError("no size or checksum")
    return Outcome(size=size, adler32=adler32, sha256=sha256)


def is_worth_repeating(tries: list[Outcome]) -> bool:
    """After these tries, the last of which has failed: may one more help?

    Content that was wrong in the same way twice is not damaged on its way: it is what lies there.
    """
    last = tries[-1]
    return last.why in _AGAIN and len(tries) < TRIES and not _is_wrong_twice(tries)


def pause_s(tries: list[Outcome], spread: float) -> float:
    """How long to wait before the next try. ``spread`` between 0 and 1 keeps many pilots from coming back at once."""
    asked = tries[-1].retry_after_s
    longest = min(FIRST_PAUSE_S * 2.0 ** (len(tries) - 1), MAX_PAUSE_S)
    return asked if asked is not None else longest * (0.5 + 0.5 * spread)


def fault_of(transfer: Transfer, tries: list[Outcome]) -> JobFault:
    """The fault of a transfer that is given up: it names the file, the place, what happened and how often."""
    last = tries[-1]
    kind = _kind(transfer, tries)
    often = f" (tried {len(tries)} times)" if len(tries) > 1 else ""
    return JobFault(kind, f"{transfer.lfn}: {transfer.shown}: {last.detail}{often}")


def _kind(transfer: Transfer, tries: list[Outcome]) -> Kind:
    why = tries[-1].why
    if transfer.direction == "out":
        return _OUT.get(why, errors.STAGE_OUT)
    if why == o.MISMATCH and _is_wrong_twice(tries):
        return errors.INPUT_WRONG
    return _IN.get(why, errors.STAGE_IN)


def _is_wrong_twice(tries: list[Outcome]) -> bool:
    return len(tries) > 1 and tries[-1].why == o.MISMATCH and tries[-1] == tries[-2]
