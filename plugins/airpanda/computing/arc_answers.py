"""What an ARC CE answers: JSON of its REST interface to values, strictly enough to notice a cut. No I/O.

Traps: one element comes as an object instead of a list, an empty list as an empty body, numbers as texts.

Source: A-REX 6.17, REST interface 1.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airpanda.computing.elements import Handle, PilotJobState, Status

STATES: Mapping[str, PilotJobState] = {
    "ACCEPTING": PilotJobState.SUBMITTED,  # the front end has it; the job engine has not looked yet
    "ACCEPTED": PilotJobState.QUEUED,
    "PREPARING": PilotJobState.STAGING,
    "PREPARED": PilotJobState.STAGING,
    "SUBMITTING": PilotJobState.QUEUED,
    "QUEUING": PilotJobState.QUEUED,
    "RUNNING": PilotJobState.RUNNING,
    "HELD": PilotJobState.HELD,
    "EXITINGLRMS": PilotJobState.COMPLETING,
    "EXECUTED": PilotJobState.COMPLETING,
    "FINISHING": PilotJobState.COMPLETING,
    "KILLING": PilotJobState.COMPLETING,
    "FINISHED": PilotJobState.DONE,
    "FAILED": PilotJobState.FAILED,
    "KILLED": PilotJobState.CANCELLED,
    "OTHER": PilotJobState.UNKNOWN,
    "WIPED": PilotJobState.UNKNOWN,
}
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_EXIT_CODE = re.compile(r"exit code - ([0-9]{1,3}) ")
_CANCELLED = re.compile(r"(?i)cancell?ed by|user requested|external request")
_TIMEOUT = re.compile(r"(?i)(?:wall|cpu).?time|time.?limit|timed? ?out")


class AnswerError(ValueError):
    """The answer is not what the interface gives: cut off, or from something else."""


@dataclass(frozen=True)
class Item:
    """One job's part of a bulk answer; ``code`` is an HTTP status."""

    code: int
    reason: str
    job: str = ""
    values: Mapping[str, Any] | None = None


def is_id(text: str) -> bool:
    """Whether this can be an id of a job or a delegation: it becomes part of a URL."""
    return _ID.fullmatch(text) is not None


def parse_jobs(body: bytes) -> dict[Handle, str]:
    """Job ids and their states, from ``GET /jobs?state=``.

    Raises:
        AnswerError: it is no such list.
    """
    return {Handle(_id(entry)): str(entry.get("state", "")) for entry in _entries(body)}


def parse_items(body: bytes) -> list[Item]:
    """The answer to a bulk request, in the order it came in.

    Raises:
        AnswerError: it is none.
    """
    items = []
    for entry in _entries(body):
        try:
            code = int(entry["status-code"])
        except (KeyError, ValueError) as error:
            raise AnswerError("an item without a status code") from error
        job = _id(entry) if "id" in entry else ""
        items.append(Item(code, str(entry.get("reason", "")), job, entry))
    return items


def activity(item: Item) -> Mapping[str, Any]:
    """What ``action=info`` tells of one job: at least its ``Name``, unless the CE has not looked at it yet."""
    document = (item.values or {}).get("info_document")
    found = document.get("ComputingActivity") if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def jobname_of(local: str) -> str:
    """The name in the text of ``diagnose/local``, which is there from the first moment on."""
    return next((line[8:] for line in local.splitlines() if line.startswith("jobname=")), "")


def ended(reason: str, exit_code: str = "") -> Status:
    """How a job ended that the CE calls FAILED: killed ones are among them."""
    words = " ".join(reason.split())
    match = _EXIT_CODE.search(words)
    code = int(match[1]) if match else int(exit_code) if re.fullmatch(r"[0-9]{1,3}", exit_code) else None
    text = f"ARC says: {words}" if words else "ARC says FAILED and no reason"
    if _CANCELLED.search(words):
        return Status(PilotJobState.CANCELLED, None, text)
    if code is None and _TIMEOUT.search(words):
        return Status(PilotJobState.TIMEOUT, None, text)
    return Status(PilotJobState.FAILED, code, text)


def job_list(handles: Iterable[str]) -> bytes:
    """The body of a bulk request."""
    return json.dumps({"job": [{"id": handle} for handle in handles]}).encode()


def _entries(body: bytes) -> list[dict[str, Any]]:
    if not body.strip():
        return []
    try:
        document = json.loads(body)
    except ValueError as error:
        raise AnswerError("no whole JSON") from error
    found = document.get("job", []) if isinstance(document, dict) else None
    entries = [found] if isinstance(found, dict) else found
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnswerError("no list of jobs")
    return entries


def _id(entry: Mapping[str, Any]) -> str:
    text = entry.get("id")
    if not isinstance(text, str) or not is_id(text):
        raise AnswerError("an id of another form")
    return text
