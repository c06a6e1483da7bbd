"""HTCondor: one ``condor_submit`` with ``queue N`` for a batch, one ``condor_q`` for everything.

Submit host and worker nodes share ``[ce] directory``. ``[ce] options`` are further lines of the submit description. A
job that ended has left the queue: how it ended is known from the pilot's own exit code, and from our cancel.

Source: condor_submit(1), condor_q(1), condor_rm(1) and the job ClassAd attributes of HTCondor 24; formats and texts as
documented and recorded, no schedd was there to run against (see ``CONDOR_HOST`` in the tests).
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

_LIST = re.compile(r"\[\s*(?:\{.*\}\s*)?\]")
SPOOLING = 16  # HoldReasonCode: the input files are still on their way
_STATES = {
    1: PilotJobState.QUEUED,
    2: PilotJobState.RUNNING,
    3: PilotJobState.CANCELLED,
    4: PilotJobState.DONE,
    5: PilotJobState.HELD,
    6: PilotJobState.COMPLETING,
    7: PilotJobState.HELD,
}
_WORDS = {1: "idle", 2: "running", 3: "removed", 4: "completed", 5: "held", 6: "transferring output", 7: "suspended"}


class HTCondor:
    """Clusters of jobs with the tag as attribute ``AirpandaTag``. ClassAds' ``==`` ignores case: ``=?=`` does not."""

    kind = "htcondor"
    limits = Limits(max_batch=1000, max_handles=10_000)
    index = "$AIRPANDA_INDEX"
    job_id = "$AIRPANDA_CLUSTER"
    functions = """\
ours() { printf 'Owner == "%s" && AirpandaTag =!= undefined' "$(id -un)"; }
list_tag() {
    found=$(condor_q -constraint "$(ours) && AirpandaTag =?= \\"$1\\"" -autoformat ClusterId) || return
    printf '%s\\n' "$found" | grep -E '^[0-9]+$' | sort -un
}
active_tags() { condor_q -constraint "$(ours) && JobStatus != 3 && JobStatus != 4" -autoformat AirpandaTag; }
list_jobs() {
    wanted=ClusterId,ProcId,JobStatus,HoldReasonCode,HoldReason,RemoveReason,ExitCode,AirpandaTag
    found=$(condor_q -constraint "$(ours)" -attributes "$wanted" -json) || return
    printf '%s' "$found" | tr '\\n' ' '
    echo
}
enqueue() {
    printf '%s\\n' "$@" >job.sub
    answer=$(condor_submit -terse job.sub) || return
    printf '%s\\n' "$answer" | sed -n 's/^\\([0-9][0-9]*\\)\\.[0-9].*/\\1/p' | head -n 1
}
dequeue() {
    answer=$(condor_rm -constraint "$1" 2>&1) && return
    printf '%s\\n' "$answer" >&2
    printf '%s\\n' "$answer" | grep -qi "couldn't find\\|no jobs\\|not found"
}
"""
    errors: ErrorTable = (
        (re.compile(r"(?i)would exceed|MAX_JOBS_|too many jobs|too busy"), ThrottledError),
        (re.compile(r"(?i)timed? ?out|connection (?:reset|closed)|fail.*commit"), SubmitUncertainError),
        (
            re.compile(r"(?i)failed to connect|unable to locate|can't find address|communication error|CEDAR"),
            CEUnavailableError,
        ),
        (re.compile(r"(?i)AUTHENTICATE|permission denied|not authori[sz]ed|token|credential"), CECredentialError),
        (
            re.compile(r"(?i)parse|syntax|invalid|unrecognized|not a valid|no .* specified|usage|submit requirement"),
            InvalidDescriptionError,
        ),
    )

    def submit_arguments(self, spec: BatchSpec) -> tuple[str, ...]:
        """The lines of the submit description. The site's own come first, so that they cannot replace ours.

        ``getenv = False`` keeps the submit host's environment out of the pilots. A pilot's secret is used up by its
        first start, so a job that comes back to the queue after it ran is removed instead.
        """
        if spec.partition:
            raise InvalidDescriptionError("HTCondor has no partitions: use [ce] options, such as 'requirements = …'")
        too_long = f"(JobStatus == 2 && time() - EnteredCurrentStatus > {spec.walltime_s})"
        return (
            *spec.options,
            "universe = vanilla",
            "executable = job.sh",
            "transfer_executable = False",
            "should_transfer_files = NO",
            "getenv = False",
            'environment = "AIRPANDA_INDEX=$(Process) AIRPANDA_CLUSTER=$(Cluster)"',
            f'My.AirpandaTag = "{spec.tag}"',
            f"batch_name = {spec.tag}",
            f"request_cpus = {spec.cores}",
            f"request_memory = {spec.memory_mib}MB",
            f"periodic_remove = {too_long} || (JobStatus == 1 && NumJobStarts > 0)",
            f"queue {spec.copies}",
        )

    def cancel_arguments(self, jobs: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """One constraint for all of them."""
        return (" || ".join(f"(ClusterId == {job} && ({_procs(indices)}))" for job, indices in jobs.items()),)

    def parse_jobs(self, text: str) -> list[CEJob]:
        """The jobs of every JSON list that stands in a line of its own."""
        found = []
        for line in text.splitlines():
            match = _LIST.search(line)
            try:
                ads = json.loads(match[0]) if match else []
            except ValueError:
                continue
            found += [job for job in map(_job, ads) if job is not None]
        return found


def _procs(indices: Sequence[int]) -> str:
    parts = [part.split("-") for part in ranges(indices).split(",")]
    return " || ".join(f"ProcId == {p[0]}" if len(p) == 1 else f"(ProcId >= {p[0]} && ProcId <= {p[1]})" for p in parts)


def _job(ad: Mapping[str, Any]) -> CEJob | None:
    cluster, proc, tag = ad.get("ClusterId"), ad.get("ProcId"), ad.get("AirpandaTag")
    if not (isinstance(cluster, int) and isinstance(proc, int) and isinstance(tag, str)):
        return None
    return CEJob(str(cluster), proc, tag, _state(ad), _reason(ad))


def _state(ad: Mapping[str, Any]) -> PilotJobState:
    status = ad.get("JobStatus")
    if status == 5 and ad.get("HoldReasonCode") == SPOOLING:
        return PilotJobState.STAGING
    if status == 4 and ad.get("ExitCode", 0) != 0:
        return PilotJobState.FAILED
    if status == 3 and "PeriodicRemove" in str(ad.get("RemoveReason", "")):
        return PilotJobState.TIMEOUT
    return _STATES.get(status, PilotJobState.UNKNOWN) if isinstance(status, int) else PilotJobState.UNKNOWN


def _reason(ad: Mapping[str, Any]) -> str:
    status = ad.get("JobStatus")
    word = _WORDS.get(status, str(status)) if isinstance(status, int) else str(status)
    why = ad.get({3: "RemoveReason", 5: "HoldReason"}.get(status, "") if isinstance(status, int) else "")
    return f"HTCondor says {word}: {why}" if why else f"HTCondor says {word}"
