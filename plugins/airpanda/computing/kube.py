"""Pilots as pods of a Kubernetes cluster: n copies are one Indexed Job. All state is in the cluster.

Tested against a stub of the API server of our own, and no cluster: it keeps Jobs, pods and Secrets, answers the
official client over TLS, and runs each pod's command as a process with its files. It does not imitate containers,
images, scheduling, quotas, the API server's validation and defaults, accounts' rights, or the Job controller's timing:
send one probe pilot (``queues test``) to a real cluster first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airpanda.computing import kube_objects as objects
from airpanda.computing import remote
from airpanda.computing.ces import KubernetesCE
from airpanda.computing.configuration import pilot_json
from airpanda.computing.elements import (
    CEUnavailableError,
    ComputingElementError,
    Handle,
    InvalidDescriptionError,
    Limits,
    Load,
    NotFoundAtCEError,
    Outcome,
    PilotBatch,
    Status,
    Submission,
    SubmitUncertainError,
    outcome_of,
)
from airpanda.computing.kube_api import ConflictAtCEError, KubeApi, Object, any_of
from airpanda.computing.queues import PandaQueue
from airpanda.computing.refusals import check_handles, check_room, check_size, given, parsed
from airpanda.core.secret import Secret

_HANDLE = re.compile(r"k8s_([0-9]{1,6})@([A-Za-z0-9_-]{1,64})")
_LOG_LINES = 2000
_BATCHES = 100  # in one selector


@dataclass(frozen=True)
class _Pilot:
    index: int
    tag: str

    @property
    def handle(self) -> Handle:
        return Handle(f"k8s_{self.index}@{self.tag}")


class KubernetesElement:
    """Pilots of one queue in one namespace. A handle is ``k8s_<index>@<tag>``.

    Args:
        queue: its ``[ce]`` is a ``KubernetesCE``.
        wrapper: text of the POSIX shell script that becomes the pilot.
        token: of the account that may handle Jobs, pods and Secrets in the namespace.
        timeout_s: the longest one request may take.
    """

    limits = Limits(max_batch=500, max_handles=5000)

    def __init__(self, queue: PandaQueue, wrapper: str, token: Secret[str], *, timeout_s: float = 60.0) -> None:
        if not isinstance(queue.ce, KubernetesCE):
            raise InvalidDescriptionError(f"the queue {queue.name} is not of a Kubernetes cluster")
        self.name = f"kubernetes:{queue.name}"
        self._queue, self._ce, self._wrapper = queue, queue.ce, wrapper
        self._api = KubeApi(queue.ce, token, timeout_s=timeout_s)

    @property
    def requests(self) -> int:
        """How many HTTP requests this object has made."""
        return self._api.requests

    def submit(self, batch: PilotBatch) -> Submission:
        """Create the batch's Job, then the Secret that its pods wait for; whatever of them is there stays.

        Raises:
            InvalidDescriptionError: too many, refused for good, or the tag is in use for other pilots.
            CECredentialError: the token is refused, or its account may not do this.
            ThrottledError: they would exceed ``max_pilots`` or the namespace's quota; nothing was submitted.
            CEUnavailableError: nothing was submitted; a repeat is safe.
            SubmitUncertainError: no whole answer came; a repeat is safe and adopts.
        """
        check_size(batch, self.limits)
        pilot_ids = sorted(batch.tokens)
        pilots = [pilot_json(self._queue, batch.tag, p, batch.tokens[p]) for p in pilot_ids]
        objects.secret(self._queue, batch.tag, "", self._wrapper, pilots)  # refuses what is too much, before the Job
        job, adopted = self._job(batch, pilot_ids)
        body = objects.secret(self._queue, batch.tag, str(job["metadata"].get("uid", "")), self._wrapper, pilots)
        try:
            self._api.create("secret", body)
        except ConflictAtCEError:
            pass
        except ComputingElementError as error:
            text = f"{self.name} has the Job and not its Secret; a repeat adds that: {error}"
            raise SubmitUncertainError(text) from error
        handles = {pilot_id: _Pilot(index, batch.tag).handle for index, pilot_id in enumerate(pilot_ids)}
        return Submission(batch.tag, handles, frozenset(pilot_ids) if adopted else frozenset())

    def status(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        pilots = self._parse(handles)
        jobs, pods = self._look({pilot.tag for pilot in pilots})
        return {p.handle: objects.status(jobs.get(p.tag), pods.get((p.tag, p.index)), p.index) for p in pilots}

    def find(self, tag: str) -> Mapping[Handle, Status]:
        jobs, pods = self._look({tag})
        return {
            _Pilot(index, tag).handle: objects.status(job, pods.get((tag, index)), index)
            for tag, job in jobs.items()
            for index in range(_copies(job))
        }

    def cancel(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Have the cluster end the pilots; a repeat ends them without the grace time."""
        pilots = self._parse(handles)
        jobs, pods = self._look({pilot.tag for pilot in pilots})
        outcomes: dict[Handle, Outcome] = {}
        wanted: dict[str, set[int]] = {}
        for p in pilots:
            seen = objects.status(jobs.get(p.tag), pods.get((p.tag, p.index)), p.index)
            outcomes[p.handle] = outcome_of(seen)
            if outcomes[p.handle] is Outcome.ACCEPTED:
                wanted.setdefault(p.tag, set()).add(p.index)
        for tag, chosen in wanted.items():
            self._cancel(tag, jobs[tag], chosen)
        return outcomes

    def purge(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Remove batches of which every pilot has ended; what a batch leaves before is its pods, which are small."""
        pilots = self._parse(handles)
        jobs, pods = self._look({pilot.tag for pilot in pilots})
        seen = {p: objects.status(jobs.get(p.tag), pods.get((p.tag, p.index)), p.index) for p in pilots}
        for tag, job in jobs.items():
            every = [objects.status(job, pods.get((tag, index)), index) for index in range(_copies(job))]
            if all(status.state.is_final for status in every):
                self._api.delete_job(objects.job_name(tag))
        words = {Outcome.ALREADY_OVER: Outcome.ACCEPTED, Outcome.ACCEPTED: Outcome.STILL_RUNNING}
        return {p.handle: words.get(outcome_of(status), Outcome.NOT_FOUND) for p, status in seen.items()}

    def fetch(self, handle: Handle, *, tail_bytes: int = 65536) -> bytes:
        (pilot,) = self._parse([handle])
        _, pods = self._look({pilot.tag})
        pod = pods.get((pilot.tag, pilot.index))
        if pod is None:
            raise NotFoundAtCEError(f"{self.name} has no pod of the pilot job {handle!r}, and so no log")
        log = self._api.log(str(pod["metadata"]["name"]), objects.log_of(pod), _LOG_LINES)
        return log[-tail_bytes:] if tail_bytes else b""

    def tagged(self, prefix: str) -> Mapping[str, Sequence[Handle]]:
        found: dict[str, list[Handle]] = {}
        for job in self._api.jobs():
            tag, ended = _tag(job), _ended(job)
            live = [_Pilot(index, tag).handle for index in range(_copies(job)) if index not in ended]
            if tag.startswith(prefix) and live:
                found[tag] = live
        return found

    def load(self) -> Load:
        """The namespace's pilots, of all queues."""
        return Load.of(objects.status({"metadata": {}}, pod, -1).state for pod in self._api.pods())

    def close(self) -> None:
        self._api.close()

    # --- steps ----------------------------------------------------------------------------------------------

    def _job(self, batch: PilotBatch, pilot_ids: Sequence[int]) -> tuple[Object, bool]:
        """The batch's Job, and whether it was there."""
        identity = remote.identity(pilot_ids)
        there = self._api.job(objects.job_name(batch.tag))
        if there is None:
            busy = sum(_copies(job) - len(_ended(job)) for job in self._api.jobs())
            check_room(self.name, busy=busy, wanted=len(pilot_ids), limit=self._ce.max_pilots)
            try:
                return self._api.create("job", objects.job(self._queue, batch.tag, len(pilot_ids), identity)), False
            except ConflictAtCEError:
                there = self._api.job(objects.job_name(batch.tag))
        if there is None:
            raise CEUnavailableError(f"{self.name}: the Job of {batch.tag} was there and is gone; repeat")
        if _annotation(there, objects.PILOTS) != identity or _tag(there) != batch.tag:
            raise InvalidDescriptionError(f"{self.name}: the tag {batch.tag} is in use for other pilots")
        return there, True

    def _cancel(self, tag: str, job: Object, chosen: set[int]) -> None:
        before = objects.indices(_annotation(job, objects.CANCELLED))
        every = set(range(_copies(job)))
        patch: dict[str, Any] = {
            "metadata": {
                "resourceVersion": job["metadata"].get("resourceVersion"),
                "annotations": {objects.CANCELLED: ",".join(map(str, sorted(before | chosen)))},
            }
        }
        if before | chosen | _ended(job) >= every:
            patch["spec"] = {"suspend": True}  # no pod is made any more, and those that are there end
        name = objects.job_name(tag)
        try:
            self._api.patch_job(name, patch)
        except (ConflictAtCEError, NotFoundAtCEError) as error:
            raise CEUnavailableError(f"{self.name}: the Job of {tag} has changed meanwhile; repeat: {error}") from error
        numbers = any_of(objects.INDEX, [str(index) for index in sorted(chosen)])
        self._api.delete_pods(f"{objects.JOB_NAME}={name},{numbers}", now=chosen <= before)

    def _look(self, tags: set[str]) -> tuple[dict[str, Object], dict[tuple[str, int], Object]]:
        """The Jobs of these tags, and the newest pod of each of their indices."""
        jobs: dict[str, Object] = {}
        pods: dict[tuple[str, int], Object] = {}
        labels = {objects.batch_label(tag): tag for tag in tags}
        every = sorted(labels)
        for start in range(0, len(every), _BATCHES):
            selector = f"{objects.MANAGED},{any_of(objects.BATCH, every[start : start + _BATCHES])}"
            jobs |= {_tag(job): job for job in self._api.jobs(selector) if _tag(job) in tags}
            for pod in sorted(self._api.pods(selector), key=_made):
                where = pod["metadata"].get("labels") or {}
                index = str(where.get(objects.INDEX, ""))
                if index.isdigit() and where.get(objects.BATCH) in labels:
                    pods[labels[where[objects.BATCH]], int(index)] = pod
        return jobs, pods

    def _parse(self, handles: Sequence[Handle]) -> list[_Pilot]:
        check_handles(handles, self.limits)
        return [_Pilot(int(match[1]), match[2]) for match in parsed(handles, _HANDLE, "a Kubernetes cluster")]


def _annotation(job: Object, name: str) -> str:
    return str((job["metadata"].get("annotations") or {}).get(name, ""))


def _tag(job: Object) -> str:
    return _annotation(job, objects.TAG)


def _made(pod: Object) -> str:
    return str(pod["metadata"].get("creationTimestamp", ""))


def _copies(job: Object) -> int:
    return int(job["spec"]["completions"])


def _ended(job: Object) -> set[int]:
    """Indices of which the Job counts the end, or makes no pod any more."""
    of_job = job.get("status") or {}
    counted = objects.indices(of_job.get("completedIndexes")) | objects.indices(of_job.get("failedIndexes"))
    cancelled = objects.indices(_annotation(job, objects.CANCELLED)) if objects.suspended(job) else set()
    return counted | cancelled


def make_kubernetes_element(queue: PandaQueue, wrapper: str, token: Secret[str] | None) -> KubernetesElement:
    """The element of a queue whose ``[ce]`` is a Kubernetes cluster.

    Raises:
        InvalidDescriptionError: it is of another kind.
        CECredentialError: there is no token.
    """
    return KubernetesElement(queue, wrapper, given(queue, token, "the token", ", as its password"))
