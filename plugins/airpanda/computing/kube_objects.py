"""What a Kubernetes cluster is told of pilots and what it says of them: objects of its API as plain values. No I/O.

A batch is one Indexed Job and one Secret with a file for each index. A pod's first container mounts the one file of its
own index and copies it; the pilot's container mounts nothing of the Secret: a mounted file cannot be removed, and
payloads would read the pilot's token for as long as the pod lives. The tag is an annotation, as labels take fewer
characters; a digest of it names the Job, so the API server itself refuses to make a batch twice.

Source: Kubernetes 1.33, batch/v1 (Indexed Jobs with backoffLimitPerIndex) and v1.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from airpanda.computing.ces import KubernetesCE
from airpanda.computing.elements import InvalidDescriptionError, PilotJobState, Status
from airpanda.computing.pilot_script import pilot_script
from airpanda.computing.queues import PandaQueue

MANAGED = "app.kubernetes.io/managed-by=airpanda"
BATCH = "airpanda/batch"
TAG = "airpanda/tag"
PILOTS = "airpanda/pilots"
CANCELLED = "airpanda/cancelled"
JOB_NAME = "batch.kubernetes.io/job-name"
INDEX = "batch.kubernetes.io/job-completion-index"
MAX_SECRET_BYTES = 1024 * 1024
_KEPT_S = 2 * 86400  # a Job that nobody purges
_GRACE_S = 60
_START_AT, _WORK_AT = "/airpanda", "/airpanda-work"
_STUCK = re.compile(r"Err|BackOff|Invalid|CreateContainer")

# The pilot's directory is not the volume's own: it makes its sandboxes beside it, and hides what is around them.
_PUT = """\
umask 077
cd {work} && mkdir -p pilot/tmp && cat {start}/start.sh >start.sh &&
    cat {start}/wrapper.sh >pilot/wrapper.sh && cat {start}/pilot.json >pilot/pilot.json ||
    {{ echo "airpanda: the pilot's files cannot be put in place"; exit 71; }}
"""


def job_name(tag: str) -> str:
    """The name of a batch's Job and Secret. Tags may hold what names may not."""
    return f"airpanda-{batch_label(tag)}"


def batch_label(tag: str) -> str:
    return hashlib.sha256(tag.encode()).hexdigest()[:40]


def job(queue: PandaQueue, tag: str, copies: int, identity: str) -> dict[str, Any]:
    """The Job of a batch.

    Without ``backoffLimitPerIndex`` the first pilot that fails would end all others; a pilot's secret is used up by its
    first start, so none is started twice.
    """
    ce = _ce(queue)
    labels = {"app.kubernetes.io/managed-by": "airpanda", BATCH: batch_label(tag)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(tag), "labels": labels, "annotations": {TAG: tag, PILOTS: identity}},
        "spec": {
            "completions": copies,
            "parallelism": copies,
            "completionMode": "Indexed",
            "backoffLimitPerIndex": 0,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": _KEPT_S,
            "template": {"metadata": {"labels": labels}, "spec": _pod(queue, ce, tag)},
        },
    }


def _pod(queue: PandaQueue, ce: KubernetesCE, tag: str) -> dict[str, Any]:
    slot = queue.slot
    amounts = {"cpu": str(slot.cores), "memory": f"{slot.memory_mib}Mi"}  # of each: a pod is given the larger one
    both = {"image": ce.image, "resources": {"requests": amounts, "limits": amounts}}
    work = {"name": "work", "mountPath": _WORK_AT}
    paths = {f"host-{number}": path for number, path in enumerate(ce.host_paths)}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "activeDeadlineSeconds": slot.walltime_s,
        "terminationGracePeriodSeconds": _GRACE_S,
        "securityContext": {"runAsUser": ce.uid, "runAsGroup": ce.uid, "fsGroup": ce.uid, "runAsNonRoot": True},
        **({"nodeSelector": dict(pair.split("=", 1) for pair in ce.node_selector)} if ce.node_selector else {}),
        "initContainers": [
            {
                "name": "files",
                **both,
                "command": ["/bin/sh", "-c", _PUT.format(work=_WORK_AT, start=_START_AT)],
                "env": [
                    {
                        "name": "AIRPANDA_INDEX",
                        "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}},
                    }
                ],
                "volumeMounts": [
                    _file("start.sh", subPath="start.sh"),
                    _file("wrapper.sh", subPath="wrapper.sh"),
                    _file("pilot.json", subPathExpr="$(AIRPANDA_INDEX).json"),
                    work,
                ],
            }
        ],
        "containers": [
            {
                "name": "pilot",
                **both,
                "command": ["/bin/sh", f"{_WORK_AT}/start.sh"],
                "volumeMounts": [
                    work,
                    *({"name": name, "mountPath": path, "readOnly": True} for name, path in paths.items()),
                ],
            }
        ],
        "volumes": [
            {"name": "start", "secret": {"secretName": job_name(tag), "defaultMode": 0o440}},
            {"name": "work", "emptyDir": {"sizeLimit": f"{slot.disk_mib}Mi"}},
            *({"name": name, "hostPath": {"path": path}} for name, path in paths.items()),
        ],
    }


def _file(name: str, **where: str) -> dict[str, Any]:
    return {"name": "start", "mountPath": f"{_START_AT}/{name}", "readOnly": True, **where}


def secret(queue: PandaQueue, tag: str, owner_uid: str, wrapper: str, pilots: Iterable[str]) -> dict[str, Any]:
    """The Secret of a batch: it ends with the Job that owns it.

    Raises:
        InvalidDescriptionError: more than a Secret can hold.
    """
    start = f"umask 077\ncd {_WORK_AT}/pilot || exit 71\n" + pilot_script(queue.pilot.code, queue.pilot.python)
    files = {"start.sh": start, "wrapper.sh": wrapper, **{f"{i}.json": text for i, text in enumerate(pilots)}}
    if sum(len(text.encode()) for text in files.values()) > MAX_SECRET_BYTES:
        raise InvalidDescriptionError(f"a Secret holds {MAX_SECRET_BYTES} bytes, too few for so many pilots")
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job_name(tag), "uid": owner_uid}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": job_name(tag),
            "labels": {"app.kubernetes.io/managed-by": "airpanda", BATCH: batch_label(tag)},
            "ownerReferences": [owner],
        },
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in files.items()},
    }


def _ce(queue: PandaQueue) -> KubernetesCE:
    if not isinstance(queue.ce, KubernetesCE):
        raise InvalidDescriptionError(f"the queue {queue.name} is not of a Kubernetes cluster")
    return queue.ce


# --- states --------------------------------------------------------------------------------------------------


def indices(text: object) -> set[int]:
    """``1,3-5`` of a Job's status or of our annotation, as numbers; anything else is none."""
    found: set[int] = set()
    for part in str(text or "").split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if match:
            found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def status(job: Mapping[str, Any] | None, pod: Mapping[str, Any] | None, index: int) -> Status:
    """What Job and pod say of one pilot. Pods go; a Job knows the ends of its indices for as long as it is there.

    A cancelled pilot without a pod is over when the Job makes no more pods, or counts its end: until then a quota, or
    the controller's pace, may have kept back a pod that comes after the cancel.
    """
    if job is None:
        return Status(PilotJobState.UNKNOWN, None, "the cluster does not have the Job")
    of_job = job.get("status") or {}
    asked = index in indices((job["metadata"].get("annotations") or {}).get(CANCELLED))
    seen = _of_pod(pod) if pod is not None else None
    if index in indices(of_job.get("completedIndexes")):
        return Status(PilotJobState.DONE, 0)
    failed = index in indices(of_job.get("failedIndexes"))
    if seen is None:
        if asked and (failed or suspended(job)):
            return Status(PilotJobState.CANCELLED, None, "cancelled on request")
        if failed:
            return Status(PilotJobState.FAILED, None, "the Job says that its pod failed; the pod is gone")
        text = "cancelled, and the Job may make a pod for it yet" if asked else "the Job has no pod for it yet"
        return Status(PilotJobState.QUEUED, None, text)
    if asked and (seen.state in (PilotJobState.FAILED, PilotJobState.PREEMPTED) or failed):
        return Status(PilotJobState.CANCELLED, seen.exit_code, "cancelled on request")
    return seen


def suspended(job: Mapping[str, Any]) -> bool:
    """Whether the Job makes no pod any more."""
    return bool((job.get("spec") or {}).get("suspend"))


def _of_pod(pod: Mapping[str, Any]) -> Status:
    of_pod = pod.get("status") or {}
    phase, why = of_pod.get("phase"), f"{of_pod.get('reason') or ''} {of_pod.get('message') or ''}".strip()
    container = _container(of_pod)
    code = (container.get("terminated") or {}).get("exitCode")
    if phase == "Succeeded":
        return Status(PilotJobState.DONE, 0)
    if phase == "Failed":
        return Status(_failure(of_pod), code, why or f"the pilot ended with exit code {code}")
    if phase == "Running":
        ends = (pod.get("metadata") or {}).get("deletionTimestamp")
        return Status(PilotJobState.COMPLETING if ends else PilotJobState.RUNNING, None, "Kubernetes says Running")
    if phase == "Pending":
        waiting = (container.get("waiting") or {}).get("reason") or ""
        if _STUCK.search(waiting):
            return Status(PilotJobState.HELD, None, f"Kubernetes says {waiting}: its administrator must look")
        placed = _condition(of_pod, "PodScheduled").get("status") == "True"
        return Status(
            PilotJobState.STAGING if placed else PilotJobState.QUEUED, None, f"Kubernetes says {waiting or phase}"
        )
    return Status(PilotJobState.UNKNOWN, None, f"Kubernetes says {phase}")


def log_of(pod: Mapping[str, Any]) -> str:
    """The container whose log says how far the pod has come."""
    return "pilot" if _started(pod.get("status") or {}) else "files"


def _container(of_pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of the container whose turn it is: the pilot's own only waits while its files do."""
    which = "containerStatuses" if _started(of_pod) else "initContainerStatuses"
    state: Mapping[str, Any] = (of_pod.get(which) or [{}])[0].get("state") or {}
    return state


def _started(of_pod: Mapping[str, Any]) -> bool:
    files = of_pod.get("initContainerStatuses") or []
    return all(((one.get("state") or {}).get("terminated") or {}).get("exitCode") == 0 for one in files)


def _failure(of_pod: Mapping[str, Any]) -> PilotJobState:
    reason = of_pod.get("reason")
    if reason == "DeadlineExceeded":
        return PilotJobState.TIMEOUT
    if reason in ("Evicted", "Preempting", "Shutdown", "NodeLost", "Terminated"):
        return PilotJobState.PREEMPTED
    disrupted = _condition(of_pod, "DisruptionTarget").get("status") == "True"
    return PilotJobState.PREEMPTED if disrupted else PilotJobState.FAILED


def _condition(of_pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((one for one in of_pod.get("conditions") or [] if one.get("type") == kind), {})
