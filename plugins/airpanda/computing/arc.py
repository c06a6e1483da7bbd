"""Pilots on an ARC CE. All state is at the CE: jobs are found again by their names, which are tag and PilotID."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from airpanda.computing.arc_answers import STATES, Item, activity, ended, is_id, jobname_of
from airpanda.computing.arc_description import (
    LOG,
    PROXY_MARK,
    PilotStart,
    describe,
    job_name,
    parse_job_name,
)
from airpanda.computing.arc_rest import ArcRest, Delegation
from airpanda.computing.ces import ArcCE
from airpanda.computing.configuration import pilot_json
from airpanda.computing.elements import (
    BUSY_RETRY_S,
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    Handle,
    InvalidDescriptionError,
    Limits,
    Load,
    NotFoundAtCEError,
    Outcome,
    PilotBatch,
    PilotJobState,
    Status,
    Submission,
    ThrottledError,
)
from airpanda.computing.queues import PandaQueue
from airpanda.computing.refusals import check_fresh, check_handles, check_outlives, check_room, check_size, given
from airpanda.core.clock import utcnow
from airpanda.pilot.config import sealing_purpose
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.sealing import seal

_REFUSED = re.compile(r"(?i)limit|too many|maximum|busy|try again")
_INVALID = re.compile(
    r"(?i)pars|not allowed|missing|not (?:available|supported|found|match)|invalid|unknown|no such|exceed"
)
_SETTLE_S, _SETTLE_LIMIT_S = 2.0, 60.0


class ArcElement:
    """Pilots of one queue on one ARC CE. A handle is ARC's job id.

    Unlike a submit host, a CE has no lock: the caller sees to it that a tag is submitted by one process at a time, as
    the batch's intent row does.

    Args:
        queue: its ``[ce]`` is an ``ArcCE``.
        wrapper: text of the POSIX shell script that becomes the pilot.
        credential: the robot's; proxies of it are delegated to the CE.
        timeout_s: the longest one request may take.
    """

    limits = Limits(max_batch=1000, max_handles=10_000)

    def __init__(
        self,
        queue: PandaQueue,
        wrapper: str,
        credential: ProxyCredential,
        *,
        timeout_s: float = 120.0,
        clock: Callable[[], datetime] = utcnow,
    ) -> None:
        if not isinstance(queue.ce, ArcCE):
            raise InvalidDescriptionError(f"the queue {queue.name} is not of an ARC CE")
        self.name = f"arc:{queue.name}"
        self._queue, self._ce, self._wrapper, self._clock = queue, queue.ce, wrapper, clock
        self._rest = ArcRest(queue.ce.url, credential, Path(queue.ce.ca_dir), timeout_s=timeout_s)
        self._delegation: Delegation | None = None
        # What never changes again: names of jobs, and how jobs ended. Forgotten with the jobs.
        self._names: dict[Handle, str] = {}
        self._ends: dict[Handle, Status] = {}

    @property
    def requests(self) -> int:
        """How many HTTP requests this object has made."""
        return self._rest.requests

    def submit(self, batch: PilotBatch) -> Submission:
        """Submit in one request what the CE does not have under this tag yet.

        Raises:
            InvalidDescriptionError: too many, refused for good, or the tag is in use for other pilots.
            CECredentialError: the robot is refused, or its credential ends before such a pilot would.
            ThrottledError: they would exceed ``max_pilots`` or a limit of the site.
            CEUnavailableError: nothing was submitted; a repeat is safe.
            SubmitUncertainError: no whole answer came; a repeat is safe and adopts.
        """
        check_size(batch, self.limits)
        states, there = self._settled(batch)
        if not there.keys() <= batch.tokens.keys():
            raise InvalidDescriptionError(f"{self.name}: the tag {batch.tag} is in use for other pilots")
        handles = {pilot_id: self._only(copies, states) for pilot_id, copies in there.items()}
        missing = sorted(batch.tokens.keys() - handles.keys())
        if missing:
            busy = sum(not _final(state) for state in states.values())
            check_room(self.name, busy=busy, wanted=len(missing), limit=self._ce.max_pilots)
            handles |= self._send(batch, missing)
        return Submission(batch.tag, handles, frozenset(there))

    def status(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        self._check(handles)
        return self._statuses(handles, self._rest.jobs()) if handles else {}

    def find(self, tag: str) -> Mapping[Handle, Status]:
        states = self._rest.jobs()
        found = [handle for copies in self._named(tag, states).values() for handle in copies]
        return self._statuses(found, states)

    def cancel(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Ask the CE to end the pilots; it ends by force what does not end in its batch system's grace time."""
        outcomes = {handle: _outcome(status) for handle, status in self.status(handles).items()}
        wanted = [handle for handle, outcome in outcomes.items() if outcome is Outcome.ACCEPTED]
        return outcomes | self._ask("kill", wanted)

    def purge(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Have the CE remove jobs that ended, with their session directories."""
        outcomes = {handle: _outcome(status) for handle, status in self.status(handles).items()}
        running = {h: Outcome.STILL_RUNNING for h, outcome in outcomes.items() if outcome is Outcome.ACCEPTED}
        ended_ones = [handle for handle, outcome in outcomes.items() if outcome is Outcome.ALREADY_OVER]
        return outcomes | running | self._ask("clean", ended_ones)

    def fetch(self, handle: Handle, *, tail_bytes: int = 65536) -> bytes:
        self._check([handle])
        return self._rest.tail(handle, LOG, tail_bytes)

    def renew(self, credential: ProxyCredential) -> datetime:
        """Renew every delegation that waiting and running pilots of the robot use; see ``Renewable``.

        What A-REX 6.17 does with it: a pilot gets the fresh proxy if it was not yet handed to the batch system. One
        that was keeps the proxy it has, so let the robot's credential last for as long as a pilot may wait and run.
        """
        check_fresh(self.name, credential, self._clock())
        self._rest.use(credential)
        self._delegation = None
        active = [handle for handle, state in self._rest.jobs().items() if not _final(state)]
        ends = [credential.not_after]
        for delegation in sorted(self._rest.delegations_of(active)) if active else ():
            try:
                ends.append(self._rest.renew(delegation, self._lifetime(), self._clock()).ends)
            except NotFoundAtCEError:
                continue  # its last job has just gone
            except (CECredentialError, CEUnavailableError):
                raise
            except ComputingElementError as error:
                raise CEUnavailableError(f"{self.name}: {error}") from error
        return min(ends)

    def credential_ends(self) -> datetime:
        """What is delegated lasts as long as the robot's own credential, but no longer than ``[ce] delegation_s``."""
        return self._clock() + self._lifetime()

    def load(self) -> Load:
        """The robot's pilots, of all its queues at this CE."""
        return Load.of(STATES.get(state, PilotJobState.UNKNOWN) for state in self._rest.jobs().values())

    def tagged(self, prefix: str) -> Mapping[str, Sequence[Handle]]:
        """The robot's jobs that have not ended, by tag; see ``ListsTags``."""
        states = self._rest.jobs()
        self._learn_names(states)
        found: dict[str, list[Handle]] = {}
        for handle, state in states.items():
            parsed = parse_job_name(self._names.get(handle, ""))
            if parsed is not None and parsed[0].startswith(prefix) and not _final(state):
                found.setdefault(parsed[0], []).append(handle)
        return found

    def close(self) -> None:
        self._rest.close()

    # --- jobs by name ---------------------------------------------------------------------------------------

    def _named(self, tag: str, states: Mapping[Handle, str]) -> dict[int, list[Handle]]:
        """The jobs of one tag by PilotID: more than one where an answer was lost while the CE still worked on it."""
        self._learn_names(states)
        found: dict[int, list[Handle]] = {}
        for handle in states:
            parsed = parse_job_name(self._names.get(handle, ""))
            if parsed is not None and parsed[0] == tag:
                found.setdefault(parsed[1], []).append(handle)
        return found

    def _learn_names(self, states: Mapping[Handle, str]) -> None:
        """What the jobs are called: by the bulk answer, and by the CE's own file where that does not know yet."""
        for gone in self._names.keys() - states.keys():
            del self._names[gone]
            self._ends.pop(gone, None)
        new = [handle for handle in states if handle not in self._names]
        for item in self._rest.bulk("info", new):
            if name := activity(item).get("Name"):
                self._names[Handle(item.job)] = str(name)
        for handle in new:
            # A job that is just being made may have neither: ask again the next time.
            if handle not in self._names and (local := self._rest.diagnose(handle, "local")):
                self._names[handle] = jobname_of(local)

    def _settled(self, batch: PilotBatch) -> tuple[dict[Handle, str], dict[int, list[Handle]]]:
        """What the CE has of a batch. Where that is a part, it may be reading the rest still: look until it stands."""
        end = time.monotonic() + _SETTLE_LIMIT_S
        seen = -1
        while True:
            states = self._rest.jobs()
            there = self._named(batch.tag, states)
            if len(there) in (0, seen) or batch.tokens.keys() <= there.keys() or time.monotonic() > end:
                return states, there
            seen = len(there)
            time.sleep(_SETTLE_S)

    def _only(self, copies: Sequence[Handle], states: Mapping[Handle, str]) -> Handle:
        """One job of a pilot that the CE has several times; the others would find its token used."""
        first, *others = sorted(
            copies, key=lambda handle: (_final(states[handle]), states[handle] != "RUNNING", handle)
        )
        self._ask("kill", [handle for handle in others if not _final(states[handle])])
        return first

    # --- submission -----------------------------------------------------------------------------------------

    def _send(self, batch: PilotBatch, pilot_ids: Sequence[int]) -> dict[int, Handle]:
        delegation = self._delegated()
        starts = {job_name(batch.tag, p): self._start(batch, p, delegation.key) for p in pilot_ids}
        items = self._rest.submit(describe(self._queue, self._ce.queue, delegation.id, starts))
        made = {p: Handle(item.job) for p, item in zip(pilot_ids, items, strict=False) if item.job}
        self._names |= {handle: job_name(batch.tag, p) for p, handle in made.items()}
        if len(made) < len(pilot_ids):
            raise self._refusal(items, len(made))
        return made

    def _start(self, batch: PilotBatch, pilot_id: int, key: object) -> PilotStart:
        queue, tag = self._queue, batch.tag
        scratch = f"{self._ce.scratch}/{tag}-{pilot_id}" if self._ce.scratch else ""
        sealed = seal(key, batch.tokens[pilot_id], purpose=sealing_purpose(tag, pilot_id))
        text = pilot_json(
            queue, tag, pilot_id, batch.tokens[pilot_id], scratch=scratch, sealed=sealed, proxy=PROXY_MARK
        )
        return PilotStart(text, self._wrapper, queue.pilot.code, queue.pilot.python)

    def _refusal(self, items: Sequence[Item], taken: int) -> ComputingElementError:
        reason = next((item.reason for item in items if not item.job), "fewer answers than pilots")
        text = f"{self.name} took {taken} pilots and refused the others; a repeat adopts those: {reason}"
        if _REFUSED.search(reason):
            return ThrottledError(text, retry_after_s=BUSY_RETRY_S)
        return InvalidDescriptionError(text) if _INVALID.search(reason) else CEUnavailableError(text)

    def _delegated(self) -> Delegation:
        """A delegation that outlives a pilot which starts at once, and is all but fresh."""
        now, walltime, lifetime = self._clock(), timedelta(seconds=self._queue.slot.walltime_s), self._lifetime()
        if timedelta(seconds=self._ce.delegation_s) < walltime:
            raise InvalidDescriptionError(f"{self.name}: [ce] delegation_s is shorter than a pilot of {walltime}")
        check_outlives(self.name, self._rest.credential, now, walltime)
        if self._delegation is None or self._delegation.ends < now + max(walltime, lifetime * 0.9):
            self._delegation = self._rest.delegate(lifetime, now)
        return self._delegation

    def _lifetime(self) -> timedelta:
        """Of what is delegated: never longer than the robot's own."""
        left = self._rest.credential.not_after - self._clock()
        return max(timedelta(seconds=1), min(left, timedelta(seconds=self._ce.delegation_s)))

    # --- states ---------------------------------------------------------------------------------------------

    def _statuses(self, handles: Sequence[Handle], states: Mapping[Handle, str]) -> dict[Handle, Status]:
        self._learn_ends([h for h in handles if states.get(h) == "FAILED" and h not in self._ends])
        return {handle: self._status(handle, states.get(handle)) for handle in handles}

    def _status(self, handle: Handle, state: str | None) -> Status:
        if state is None:
            return Status(PilotJobState.UNKNOWN, None, "the CE does not know the job")
        if handle in self._ends:
            return self._ends[handle]
        found = STATES.get(state, PilotJobState.UNKNOWN)
        return Status(found, 0 if found is PilotJobState.DONE else None, f"ARC says {state}")

    def _learn_ends(self, failed: Sequence[Handle]) -> None:
        """Why jobs failed. The bulk answer can be a minute old; the CE's own file is not."""
        for item in self._rest.bulk("info", failed):
            found = activity(item)
            if error := found.get("Error"):
                said = error if isinstance(error, str) else " ".join(map(str, error))
                self._ends[Handle(item.job)] = ended(said, str(found.get("ExitCode", "")))
        for handle in failed:
            if handle not in self._ends and (said := self._rest.diagnose(handle, "failed")).strip():
                self._ends[handle] = ended(said)

    def _ask(self, action: str, handles: Sequence[Handle]) -> dict[Handle, Outcome]:
        items = self._rest.bulk(action, handles)
        bad = next((item for item in items if item.code >= 500), None)
        if bad is not None:
            raise CEUnavailableError(f"{self.name} could not {action} every pilot; repeat: {bad.reason}")
        return {Handle(i.job): Outcome.ACCEPTED if i.code < 300 else Outcome.NOT_FOUND for i in items if i.job}

    def _check(self, handles: Sequence[Handle]) -> None:
        """Handles become parts of URLs: anything else is refused here, before it travels."""
        check_handles(handles, self.limits)
        for handle in handles:
            if not is_id(handle):
                raise InvalidDescriptionError(f"{handle!r} is no handle of an ARC CE")


def _final(state: str) -> bool:
    return STATES.get(state, PilotJobState.UNKNOWN).is_final or state == "WIPED"


def _outcome(status: Status) -> Outcome:
    if status.state is PilotJobState.UNKNOWN and status.reason == "the CE does not know the job":
        return Outcome.NOT_FOUND
    return Outcome.ALREADY_OVER if status.state.is_final else Outcome.ACCEPTED


def make_arc_element(queue: PandaQueue, wrapper: str, credential: ProxyCredential | None) -> ArcElement:
    """The element of a queue whose ``[ce]`` is an ARC CE.

    Raises:
        InvalidDescriptionError: it is of another kind.
        CECredentialError: there is no credential.
    """
    return ArcElement(queue, wrapper, given(queue, credential, "the robot's credential"))
