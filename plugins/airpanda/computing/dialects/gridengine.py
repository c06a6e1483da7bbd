"""Grid Engine (Son of Grid Engine 8.1, Univa, Altair): one ``qsub -t`` for a batch, one ``qstat`` for everything.

A job that ended has left the list: how it ended is known from the pilot's own exit code, and from our cancel. Cores and
memory are named differently at every site: they belong into ``[ce] options``, such as ``["-pe", "smp", "8"]``.

Source: qsub(1), qstat(1), qdel(1) of 8.1.9; behaviour measured with Debian 12's daemons.
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
    ThrottledError,
)

# A job's name must not begin with a digit, and a tag may.
_PREFIX = "airpanda."
_JOB = re.compile(r" *([0-9]+) +[0-9.]+ +\S+ +\S+ +([A-Za-z]{1,6}) +[0-9/]+ [0-9:]+ .*? ([0-9]+)")
_NAME = re.compile(r" +Full jobname: +airpanda\.([A-Za-z0-9_-]{1,64})")


class GridEngine:
    """Array tasks count from 1, copies from 0. ``-notify`` gives pilots the queue's notify time before the kill."""

    kind = "gridengine"
    limits = Limits(max_batch=1000, max_handles=10_000)
    index = "$((SGE_TASK_ID - 1))"
    job_id = "$JOB_ID"
    functions = """\
list_jobs() { qstat -g d -r -u "$(id -un)"; }
list_tag() {
    found=$(list_jobs) || return
    printf '%s\\n' "$found" | awk -v name="airpanda.$1" '
        $1 ~ /^[0-9]+$/ { job = $1 }
        $1 == "Full" && $2 == "jobname:" && $3 == name { print job }' | sort -un
}
active_tags() {
    found=$(list_jobs) || return
    printf '%s\\n' "$found" | sed -n 's/^ *Full jobname: *airpanda\\.//p'
}
enqueue() {
    answer=$(qsub -terse "$@" job.sh) || return
    printf '%s\\n' "$answer" | sed -n 's/^\\([0-9][0-9]*\\)\\..*/\\1/p'
}
dequeue() {
    answer=$(qdel "$@" 2>&1) && return
    printf '%s\\n' "$answer" >&2
    ! printf '%s\\n' "$answer" | grep -qvE 'does not exist|registered the job|has deleted job'
}
"""
    errors: ErrorTable = (
        (
            re.compile(r"(?i)unable to contact qmaster|commlib error|got no response|qmaster hostname"),
            CEUnavailableError,
        ),
        (re.compile(r"(?i)not allowed to submit more|job limit|max_u?_?jobs|temporarily"), ThrottledError),
        (
            re.compile(r"(?i)no submit host|not a submit host|has no permission|does not have .*permission"),
            CECredentialError,
        ),
        (
            re.compile(r"(?i)unknown (?:resource|queue|option)|invalid|rejected|no suitable queues|not a valid|denied"),
            InvalidDescriptionError,
        ),
    )

    def submit_arguments(self, spec: BatchSpec) -> tuple[str, ...]:
        """The site's own options come first, so that they cannot replace ours. ``-r n``: a pilot starts once."""
        queue = ("-q", spec.partition) if spec.partition else ()
        name = ("-N", f"{_PREFIX}{spec.tag}", "-t", f"1-{spec.copies}")
        output = ("-cwd", "-S", "/bin/sh", "-j", "y", "-o", "/dev/null")
        return (*spec.options, *queue, *name, "-l", f"h_rt={spec.walltime_s}", *output, "-r", "n", "-notify")

    def cancel_arguments(self, jobs: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        return tuple(
            f"{job}.{part}" for job, indices in jobs.items() for part in ranges([i + 1 for i in indices]).split(",")
        )

    def parse_jobs(self, text: str) -> list[CEJob]:
        """A job is two lines: its own, in which a long name is cut, and the one with the full name."""
        jobs = []
        task: re.Match[str] | None = None
        for line in text.splitlines():
            if match := _JOB.fullmatch(line.rstrip()):
                task = match
            elif task is not None and (match := _NAME.fullmatch(line.rstrip())):
                jobs.append(CEJob(task[1], int(task[3]) - 1, match[1], _state(task[2]), f"Grid Engine says {task[2]}"))
                task = None
        return jobs


def _state(letters: str) -> PilotJobState:
    """Source: qstat(1), "status". Letters add up: an error outranks a hold, a deletion outranks what it deletes."""
    if "E" in letters:
        return PilotJobState.FAILED
    if "d" in letters:
        return PilotJobState.COMPLETING
    if any(letter in letters for letter in "hsSTPN"):
        return PilotJobState.HELD
    if "t" in letters:
        return PilotJobState.STAGING
    if letters.endswith("r"):
        return PilotJobState.RUNNING
    return PilotJobState.QUEUED if letters.endswith("w") else PilotJobState.UNKNOWN
