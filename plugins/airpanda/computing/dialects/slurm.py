"""Slurm: one ``sbatch --array`` for a batch, one ``squeue`` for everything.

Source: sbatch(1), squeue(1), scancel(1) of 22.05; behaviour measured with Debian 12's daemons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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

# The name comes last but one and the reason last: neither can be mistaken for another field.
_LINE = re.compile(r"([0-9]+)\|([0-9]+|N/A)\|([A-Z_]+)\|([A-Za-z0-9_-]{1,64})\|([^|]*)")
_STATES = {
    "PENDING": PilotJobState.QUEUED,
    "CONFIGURING": PilotJobState.QUEUED,
    "REQUEUED": PilotJobState.QUEUED,
    "REQUEUE_FED": PilotJobState.QUEUED,
    "REQUEUE_HOLD": PilotJobState.HELD,
    "SPECIAL_EXIT": PilotJobState.HELD,
    "RESV_DEL_HOLD": PilotJobState.HELD,
    "RUNNING": PilotJobState.RUNNING,
    "RESIZING": PilotJobState.RUNNING,
    "SIGNALING": PilotJobState.RUNNING,
    "SUSPENDED": PilotJobState.HELD,
    "STOPPED": PilotJobState.HELD,
    "COMPLETING": PilotJobState.COMPLETING,
    "STAGE_OUT": PilotJobState.COMPLETING,
    "COMPLETED": PilotJobState.DONE,
    "FAILED": PilotJobState.FAILED,
    "NODE_FAIL": PilotJobState.FAILED,
    "BOOT_FAIL": PilotJobState.FAILED,
    "OUT_OF_MEMORY": PilotJobState.FAILED,
    "TIMEOUT": PilotJobState.TIMEOUT,
    "DEADLINE": PilotJobState.TIMEOUT,
    "PREEMPTED": PilotJobState.PREEMPTED,
    "REVOKED": PilotJobState.PREEMPTED,
    "CANCELLED": PilotJobState.CANCELLED,
}


class Slurm:
    """Arrays with the tag as name and comment. Array tasks that were cancelled while pending leave no record.

    squeue's own comparison of names ignores case.
    """

    kind = "slurm"
    limits = Limits(max_batch=1000, max_handles=10_000)  # MaxArraySize is 1001 by default
    index = "$SLURM_ARRAY_TASK_ID"
    job_id = "$SLURM_ARRAY_JOB_ID"
    functions = """\
list_tag() {
    found=$(squeue --noheader --states=all --user="$(id -u)" --name="$1" --format='%F|%j') || return
    printf '%s\\n' "$found" | awk -F'|' -v name="$1" '$1 ~ /^[0-9]+$/ && $2 == name { print $1 }' | sort -un
}
active_tags() { squeue --noheader --array --user="$(id -u)" --format=%j; }
list_jobs() { squeue --noheader --array --states=all --user="$(id -u)" --format='%F|%K|%T|%j|%r'; }
enqueue() { answer=$(sbatch --parsable "$@" job.sh) && printf '%s\\n' "${answer%%;*}"; }
dequeue() { scancel "$@"; }
"""
    errors: ErrorTable = (
        (re.compile(r"(?i)timed out|zero bytes were transmitted"), SubmitUncertainError),
        (re.compile(r"(?i)submit limit|temporarily (?:unable|unavailable)|MaxJobCount|too busy"), ThrottledError),
        (re.compile(r"(?i)unable to contact slurm controller|munge|authentication"), CEUnavailableError),
        (re.compile(r"(?i)invalid account|user not authori[sz]ed|access/permission denied"), CECredentialError),
        (
            re.compile(
                r"(?i)invalid|unrecognized option|not available|can not be satisfied|requested .* exceeds|usage"
            ),
            InvalidDescriptionError,
        ),
    )

    def submit_arguments(self, spec: BatchSpec) -> tuple[str, ...]:
        """The site's own options come first, so that they cannot replace ours.

        ``--export=NIL`` keeps the submit host's environment out of the pilots; ``--no-requeue``, because a pilot's
        secret is used up by its first start.
        """
        return (
            *spec.options,
            *((f"--partition={spec.partition}",) if spec.partition else ()),
            f"--job-name={spec.tag}",
            f"--comment={spec.tag}",
            f"--array=0-{spec.copies - 1}",
            "--ntasks=1",
            f"--cpus-per-task={spec.cores}",
            f"--mem={spec.memory_mib}M",
            f"--time={-(-spec.walltime_s // 60)}",
            "--export=NIL",
            "--no-requeue",
            "--open-mode=append",
            "--output=%a/pilot.log",
        )

    def cancel_arguments(self, jobs: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        return tuple(f"{job}_[{ranges(indices)}]" for job, indices in jobs.items())

    def parse_jobs(self, text: str) -> list[CEJob]:
        matches = (_LINE.fullmatch(line.strip()) for line in text.splitlines())
        return [CEJob(m[1], _index(m[2]), m[4], _state(m[3], m[5]), _reason(m[3], m[5])) for m in matches if m]


def _index(word: str) -> int | None:
    """An array that was cancelled as a whole before any task began has one line, and no index."""
    return None if word == "N/A" else int(word)


def _state(word: str, reason: str) -> PilotJobState:
    if word == "PENDING" and reason.startswith("JobHeld"):
        return PilotJobState.HELD
    return _STATES.get(word, PilotJobState.UNKNOWN)


def _reason(word: str, reason: str) -> str:
    return f"Slurm says {word}" if reason in ("", "None") else f"Slurm says {word}: {reason}"
