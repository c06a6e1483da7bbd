"""PBS (OpenPBS, PBS Professional): one ``qsub -J`` for a batch, one ``qstat`` for everything.

A batch of one is no array: PBS has none of that size. Ended jobs stay for as long as the server's job history.

Source: qsub(1B), qstat(1B), qselect(1B), qdel(1B) of OpenPBS 23; formats and texts as documented, no server was there
to run against.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from airpanda.computing.dialects.port import BatchSpec, CEJob, ErrorTable, ranges
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    InvalidDescriptionError,
    Limits,
    PilotJobState,
    SubmitUncertainError,
    ThrottledError,
)

_ID = re.compile(r"([0-9]+)(?:\[([0-9]*)\])?((?:\.[A-Za-z0-9-]+)*)")
_PREFIX = "airpanda."  # a job's name must not begin with every character that a tag may begin with
_NAME = re.compile(r"airpanda\.([A-Za-z0-9_-]{1,64})")
_STATES = {
    "Q": PilotJobState.QUEUED,
    "W": PilotJobState.QUEUED,
    "T": PilotJobState.QUEUED,
    "M": PilotJobState.QUEUED,
    "B": PilotJobState.QUEUED,  # of an array as a whole: copies that run have lines of their own
    "R": PilotJobState.RUNNING,
    "H": PilotJobState.HELD,
    "S": PilotJobState.HELD,
    "U": PilotJobState.HELD,
    "E": PilotJobState.COMPLETING,
    "F": PilotJobState.DONE,
    "X": PilotJobState.DONE,
}
_SIGNALS = (256 + 15, 256 + 9)  # Exit_status of what qdel or the server ended: TERM, KILL
_TIMEOUT = re.compile(r"(?i)walltime|cput|time limit")


class PBS:
    """Arrays with the tag in their names. A job's id ends in its server's name, an array's has ``[]`` before that."""

    kind = "pbs"
    limits = Limits(max_batch=1000, max_handles=10_000)
    index = "${PBS_ARRAY_INDEX:-0}"
    job_id = '"${PBS_ARRAY_ID:-$PBS_JOBID}"'
    functions = """\
list_jobs() {
    ids=$(qselect -x -u "$(id -un)") || return
    [ -n "$ids" ] || return 0
    found=$(printf '%s\\n' "$ids" | xargs qstat -x -t -f -F json) || return
    printf '%s' "$found" | tr '\\n' ' '
    echo
}
list_tag() {
    ids=$(qselect -x -u "$(id -un)" -N "airpanda.$1") || return
    printf '%s\\n' "$ids" | grep -E '^[0-9]' | sort -u
}
active_tags() {
    ids=$(qselect -u "$(id -un)") || return
    [ -n "$ids" ] || return 0
    found=$(printf '%s\\n' "$ids" | xargs qstat -t -f -F dsv -D '|') || return
    printf '%s\\n' "$found" | awk -F'|' '
        $1 !~ /\\[\\]/ { for (i = 2; i <= NF; i++) if (sub(/^Job_Name=airpanda\\./, "", $i)) print $i }'
}
enqueue() { qsub "$@" job.sh; }
dequeue() {
    answer=$(qdel "$@" 2>&1) && return
    printf '%s\\n' "$answer" >&2
    ! printf '%s\\n' "$answer" | grep -qviE 'unknown job|has finished'
}
"""
    errors: ErrorTable = (
        (re.compile(r"(?i)would exceed|exceed.*limit|maximum number of jobs|too many"), ThrottledError),
        (re.compile(r"(?i)timed? ?out|end of file|premature"), SubmitUncertainError),
        (re.compile(r"(?i)cannot connect|could not connect|connection refused|no default server"), CEUnavailableError),
        (re.compile(r"(?i)unauthorized|not authorized|bad uid|access .*denied|permission"), CECredentialError),
        (
            re.compile(r"(?i)unknown (?:queue|resource)|illegal|invalid|cannot submit|usage|malformed|not known"),
            InvalidDescriptionError,
        ),
    )

    def submit_arguments(self, spec: BatchSpec) -> tuple[str, ...]:
        """The site's own options come first, so that they cannot replace ours.

        No ``-V``: the submit host's environment stays out of the pilots. PBS wants arrays that can run again; a pilot
        that starts a second time finds its secret used up, and ends.
        """
        array = ("-J", f"0-{spec.copies - 1}") if spec.copies > 1 else ("-r", "n")
        chunk = f"select=1:ncpus={spec.cores}:mem={spec.memory_mib}mb"
        return (
            *spec.options,
            *(("-q", spec.partition) if spec.partition else ()),
            *("-N", f"{_PREFIX}{spec.tag}"),
            *array,
            *("-l", chunk),
            *("-l", f"walltime={spec.walltime_s}"),
            *("-S", "/bin/sh", "-j", "oe", "-R", "oe"),
        )

    def cancel_arguments(self, jobs: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        return tuple(word for job, indices in jobs.items() for word in _subjobs(job, indices))

    def parse_jobs(self, text: str) -> list[CEJob]:
        """The jobs of the JSON document that stands in one line; warnings may stand before it."""
        found = []
        for line in text.splitlines():
            try:
                document = json.loads(line[max(0, line.find("{")) :])
            except ValueError:
                continue
            ads = document.get("Jobs") if isinstance(document, dict) else None
            if isinstance(ads, dict):
                found += [job for key, ad in ads.items() if (job := _job(key, ad)) is not None]
        return found


def _subjobs(job: str, indices: Sequence[int]) -> list[str]:
    """``12[0-3].server`` and ``12[7].server``; a batch of one is the job itself."""
    if "[]" not in job:
        return [job]
    return [job.replace("[]", f"[{part}]") for part in ranges(indices).split(",")]


def _job(key: str, ad: Any) -> CEJob | None:
    match = _ID.fullmatch(key)
    name = _NAME.fullmatch(str(ad.get("Job_Name", ""))) if isinstance(ad, dict) else None
    if match is None or name is None:
        return None
    number, index, server = match.groups()
    job = f"{number}{server}" if index is None else f"{number}[]{server}"
    place = 0 if index is None else int(index) if index else None
    return CEJob(job, place, name[1], _state(ad), _reason(ad))


def _state(ad: Mapping[str, Any]) -> PilotJobState:
    state = _STATES.get(str(ad.get("job_state")), PilotJobState.UNKNOWN)
    if state is not PilotJobState.DONE:
        return state
    code = ad.get("Exit_status")
    if code == 0:
        return PilotJobState.DONE
    if _TIMEOUT.search(str(ad.get("comment", ""))) and code in (*_SIGNALS, -29):
        return PilotJobState.TIMEOUT
    # Without a code it never ran: it was deleted while it waited. Of ours, `cancelled` on the submit host knows.
    return PilotJobState.CANCELLED if code is None or code in _SIGNALS else PilotJobState.FAILED


def _reason(ad: Mapping[str, Any]) -> str:
    comment = " ".join(str(ad.get("comment", "")).split())
    return f"PBS says {ad.get('job_state')}" + (f": {comment}" if comment else "")
