"""Pilots at a schedd that is elsewhere, by HTCondor's own bindings: input files are spooled, a token says who we are.

The dialect ``htcondor`` is for a submit host with its commands; this is for a site that lets us submit from outside,
such as an HTCondor-CE with IDTOKENS. Tested with the real bindings (``htcondor2`` 25.14) as far as they need no schedd,
and over a stub of a schedd that runs jobs as processes; none was there to run against (see ``CONDOR_HOST`` in the
tests). The stub imitates no authentication, matchmaking, file transfer or limits.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from airpanda.computing import remote
from airpanda.computing.ces import ScheddCE
from airpanda.computing.configuration import pilot_json
from airpanda.computing.dialects.htcondor import SPOOLING, HTCondor
from airpanda.computing.dialects.port import to_error
from airpanda.computing.elements import (
    CEUnavailableError,
    Handle,
    InvalidDescriptionError,
    Limits,
    Load,
    Outcome,
    PilotBatch,
    PilotJobState,
    Status,
    Submission,
    SubmitUncertainError,
    outcome_of,
)
from airpanda.computing.pilot_script import pilot_script
from airpanda.computing.queues import PandaQueue
from airpanda.computing.refusals import check_handles, check_room, check_size, given, lost, parsed
from airpanda.computing.transports import AnswerLostError, LocalTransport
from airpanda.core.secret import Secret

_MARK = "airpanda-schedd "
_HANDLE = re.compile(r"([0-9]{1,10})\.([0-9]{1,6})@([A-Za-z0-9_-]{1,64})")
_KEPT_S = 2 * 86400
_SPOOLED_WITHIN_S = 3600
# The pilot's secret is a file of its own; HTCondor gives it the mode that it had here, and a sandbox of 0700. Beside
# that no pilot may make its scratch directory: it gets a directory within, as on ARC.
_PUT = """\
#!/bin/sh
umask 077
chmod 711 . && mkdir -p pilot/tmp && mv pilot.json wrapper.sh pilot/ && cd pilot && chmod 600 pilot.json ||
    { echo "airpanda: the pilot's files cannot be put in place"; exit 71; }
"""


@dataclass(frozen=True)
class _Pilot:
    cluster: int
    proc: int
    tag: str

    @property
    def handle(self) -> Handle:
        return Handle(f"{self.cluster}.{self.proc}@{self.tag}")


class ScheddElement:
    """Pilots of one queue at one schedd. A handle is ``<cluster>.<proc>@<tag>``.

    As on ARC, the caller sees to it that a tag is submitted by one process at a time.

    Args:
        queue: its ``[ce]`` is a ``ScheddCE``.
        wrapper: text of the POSIX shell script that becomes the pilot.
        token: an IDTOKEN that the schedd accepts.
        timeout_s: the longest one call may take.
    """

    limits = Limits(max_batch=1000, max_handles=10_000)

    def __init__(self, queue: PandaQueue, wrapper: str, token: Secret[str], *, timeout_s: float = 120.0) -> None:
        if not isinstance(queue.ce, ScheddCE):
            raise InvalidDescriptionError(f"the queue {queue.name} is not of a schedd")
        self.name = f"schedd:{queue.name}"
        self._queue, self._ce, self._wrapper, self._token = queue, queue.ce, wrapper, token
        self._timeout_s = timeout_s
        self._dialect = HTCondor()
        self._python: tuple[str, ...] = (sys.executable, "-I")

    def submit(self, batch: PilotBatch) -> Submission:
        """Submit the batch as one cluster and spool its files, unless the schedd has its tag.

        A cluster whose files never came cannot be completed: it is removed, and submitted anew.

        Raises:
            InvalidDescriptionError: too many, refused for good, or the tag is in use for other pilots.
            CECredentialError: the token is refused.
            ThrottledError: they would exceed ``max_pilots`` or a limit of the site; nothing was submitted.
            CEUnavailableError: nothing was submitted; a repeat is safe.
            SubmitUncertainError: no whole answer came; a repeat is safe and adopts.
        """
        check_size(batch, self.limits)
        pilot_ids = sorted(batch.tokens)
        identity = remote.identity(pilot_ids)
        cluster = self._there(batch.tag, identity)
        adopted = cluster is not None
        if cluster is None:
            load = self.load()
            busy, limit = load.queued + load.running, self._ce.max_pilots
            check_room(self.name, busy=busy, wanted=len(pilot_ids), limit=limit)
            cluster = self._send(batch, pilot_ids, identity)
        handles = {pilot_id: _Pilot(cluster, proc, batch.tag).handle for proc, pilot_id in enumerate(pilot_ids)}
        return Submission(batch.tag, handles, frozenset(pilot_ids) if adopted else frozenset())

    def status(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        pilots = self._parse(handles)
        if not pilots:
            return {}
        wanted = [[pilot.cluster, pilot.proc] for pilot in pilots]
        seen = self._query(_tags({pilot.tag for pilot in pilots}), wanted)
        unknown = Status(
            PilotJobState.UNKNOWN, None, "the schedd knows the job neither in its queue nor in its history"
        )
        return {pilot.handle: seen.get(pilot, unknown) for pilot in pilots}

    def find(self, tag: str) -> Mapping[Handle, Status]:
        seen = self._query(_tags({tag}))
        return {p.handle: seen[p] for p in sorted(seen, key=lambda p: (p.cluster, p.proc)) if p.tag == tag}

    def cancel(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Have the schedd remove the pilots; it ends by force what does not end in the node's grace time."""
        outcomes = {handle: outcome_of(status) for handle, status in self.status(handles).items()}
        wanted = self._parse([handle for handle, outcome in outcomes.items() if outcome is Outcome.ACCEPTED])
        if wanted:
            self._call("remove", constraint=self._jobs(wanted))
        return outcomes

    def purge(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Let ended pilots leave the queue, with what they left in the spool."""
        outcomes = {handle: outcome_of(status) for handle, status in self.status(handles).items()}
        ended = self._parse([handle for handle, outcome in outcomes.items() if outcome is Outcome.ALREADY_OVER])
        if ended:
            self._call("leave", constraint=self._jobs(ended))
        words = {Outcome.ALREADY_OVER: Outcome.ACCEPTED, Outcome.ACCEPTED: Outcome.STILL_RUNNING}
        return {handle: words.get(outcome, outcome) for handle, outcome in outcomes.items()}

    def tagged(self, prefix: str) -> Mapping[str, Sequence[Handle]]:
        found: dict[str, list[Handle]] = {}
        for pilot, status in self._query("AirpandaTag =!= undefined").items():
            if pilot.tag.startswith(prefix) and not status.state.is_final:
                found.setdefault(pilot.tag, []).append(pilot.handle)
        return found

    def load(self) -> Load:
        """Pilots of all queues that are this token's account's at the schedd."""
        return Load.of(status.state for status in self._query("AirpandaTag =!= undefined").values())

    def close(self) -> None:
        """Nothing is held open."""

    # --- steps ----------------------------------------------------------------------------------------------

    def _there(self, tag: str, identity: str) -> int | None:
        """The cluster that has this tag, if one has; whatever waits for files that never came is removed.

        What is removed would stay in the queue by our own ``leave_in_queue``, and look like pilots that were cancelled:
        it is let go first, and what was removed without its files is no pilots' either way.
        """
        ads = [ad for ad in self._call("query", constraint=_tags({tag}))["ads"] if ad.get("AirpandaTag") == tag]
        if any(ad.get("AirpandaPilots") != identity for ad in ads):
            raise InvalidDescriptionError(f"{self.name}: the tag {tag} is in use for other pilots")
        waiting = {ad["ClusterId"] for ad in ads if ad.get("JobStatus") == 5 and ad.get("HoldReasonCode") == SPOOLING}
        removed = {ad["ClusterId"] for ad in ads if ad.get("JobStatus") == 3 and "StageInFinish" not in ad}
        whole = {ad["ClusterId"] for ad in ads} - waiting - removed
        if waiting:
            of_them = " || ".join(f"ClusterId == {cluster}" for cluster in sorted(waiting))
            self._call("leave", constraint=of_them)
            self._call("remove", constraint=of_them)
        return min(whole, default=None)

    def _send(self, batch: PilotBatch, pilot_ids: Sequence[int], identity: str) -> int:
        pilot = self._queue.pilot
        texts = [pilot_json(self._queue, batch.tag, p, batch.tokens[p]) for p in pilot_ids]
        files = {
            "start.sh": _PUT + pilot_script(pilot.code, pilot.python),
            "wrapper.sh": self._wrapper,
            **{f"{proc}/pilot.json": text for proc, text in enumerate(texts)},
        }
        description = describe(self._queue, self._ce, batch.tag, identity)
        answer = self._call("submit", description=description, copies=len(texts), files=files)
        return int(answer["cluster"])

    def _query(self, constraint: str, wanted: Sequence[Sequence[int]] = ()) -> dict[_Pilot, Status]:
        ads = self._call("query", constraint=constraint, wanted=list(wanted))["ads"]
        codes = {(str(ad.get("ClusterId")), ad.get("ProcId")): ad.get("ExitCode") for ad in ads}
        seen = {}
        for job in self._dialect.parse_jobs(json.dumps(ads)):
            if job.index is not None:
                code = codes.get((job.job, job.index)) if job.state.is_final else None
                seen[_Pilot(int(job.job), job.index, job.tag)] = Status(job.state, code, job.reason)
        return seen

    def _jobs(self, pilots: Iterable[_Pilot]) -> str:
        jobs: dict[str, list[int]] = {}
        for pilot in pilots:
            jobs.setdefault(str(pilot.cluster), []).append(pilot.proc)
        (constraint,) = self._dialect.cancel_arguments(jobs)
        return f"AirpandaTag =!= undefined && ({constraint})"

    def _call(self, operation: str, **more: Any) -> dict[str, Any]:
        """One process of the agent; see there."""
        submitting, ce = operation == "submit", self._ce
        request = {
            "op": operation,
            "collector": ce.collector,
            "schedd": ce.schedd,
            "trust_domain": ce.trust_domain,
            "token": self._token.reveal(),
            **more,
        }
        agent = resources.files("airpanda.computing").joinpath("schedd_agent.py")
        try:
            with resources.as_file(agent) as path, tempfile.TemporaryDirectory(prefix="airpanda-schedd-") as place:
                argv, request["place"] = [*self._python, str(path)], place
                done = LocalTransport().run(argv, json.dumps(request).encode(), timeout_s=self._timeout_s)
        except AnswerLostError as error:
            raise lost(submitting, f"{self.name} did not answer: {error}") from error
        lines = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if line.startswith(_MARK)]
        if not lines:
            said = " ".join(done.stderr.decode("utf-8", "replace").split())[-300:] or "nothing"
            raise lost(submitting, f"the bindings for {self.name} ended with {done.exit_code} and no answer: {said}")
        answer: dict[str, Any] = json.loads(lines[-1][len(_MARK) :])
        if answer.get("missing"):
            raise CEUnavailableError(
                "this machine has no htcondor2: its administrator must install requirements-htcondor.txt"
            )
        if answer.get("committed"):
            raise SubmitUncertainError(
                f"{self.name} has the jobs, and perhaps not their files; a repeat adopts or replaces them:"
                f" {answer['error']}"
            )
        if "error" in answer:
            failure = to_error(self.name, answer["error"], self._dialect.errors)
            uncertain = isinstance(failure, SubmitUncertainError) and not submitting
            raise CEUnavailableError(str(failure)) if uncertain else failure
        return answer

    def _parse(self, handles: Sequence[Handle]) -> list[_Pilot]:
        check_handles(handles, self.limits)
        return [_Pilot(int(match[1]), int(match[2]), match[3]) for match in parsed(handles, _HANDLE, "a schedd")]


def describe(queue: PandaQueue, ce: ScheddCE, tag: str, identity: str) -> str:
    """The submit description of a batch. The site's own lines come first, so that they cannot replace ours."""
    slot = queue.slot
    too_long = f"(JobStatus == 2 && time() - EnteredCurrentStatus > {slot.walltime_s})"
    never_came = (
        f"(JobStatus == 5 && HoldReasonCode == {SPOOLING} && time() - EnteredCurrentStatus > {_SPOOLED_WITHIN_S})"
    )
    lines = (
        *ce.options,
        "universe = vanilla",
        "executable = start.sh",
        "should_transfer_files = YES",
        "when_to_transfer_output = ON_EXIT",
        "transfer_input_files = wrapper.sh, $(Process)/pilot.json",
        'transfer_output_files = ""',
        "output = pilot.log",
        "error = pilot.err",
        "getenv = False",
        f'My.AirpandaTag = "{tag}"',
        f'My.AirpandaPilots = "{identity}"',
        f"batch_name = {tag}",
        f"request_cpus = {slot.cores}",
        f"request_memory = {slot.memory_mib}MB",
        f"request_disk = {slot.disk_mib}MB",
        f"periodic_remove = {too_long} || (JobStatus == 1 && NumJobStarts > 0) || {never_came}",
        f"leave_in_queue = (JobStatus == 3 || JobStatus == 4) && time() - EnteredCurrentStatus < {_KEPT_S}",
    )
    return "\n".join(lines) + "\n"


def _tags(tags: set[str]) -> str:
    return " || ".join(f'AirpandaTag =?= "{tag}"' for tag in sorted(tags)) or "false"


def make_schedd_element(queue: PandaQueue, wrapper: str, token: Secret[str] | None) -> ScheddElement:
    """The element of a queue whose ``[ce]`` is a schedd.

    Raises:
        InvalidDescriptionError: it is of another kind.
        CECredentialError: there is no token.
    """
    return ScheddElement(queue, wrapper, given(queue, token, "the token", ", as its password"))
