"""Which queue a submission goes to: the one it names, or one that fits among those it leaves open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from airpanda.core.errors import QueueOfflineError, RequestError
from airpanda.dispatcher.auth import demand_queue
from airpanda.dispatcher.services import QueueLike, Services, start_allowance_s
from airpanda.dispatcher.tokens import ClientIdentity
from airpanda.jobs.matching import Offered
from airpanda.jobs.submission import Known
from airpanda.messages import JobSpec, JobSubmission


async def choose_queue(wanted: JobSubmission, known: Known | None, client: ClientIdentity, services: Services) -> str:
    """The name of the queue.

    A single name is taken as it is, if the queue is online or has the jobs already. Of several, those that fit are
    candidates; jobs stay where they are, unless their site failed one of them and there is another; else the queue
    with the fewest waiting jobs is taken.

    Raises:
        NotAuthorisedError: a queue is named that the client may not use.
        RequestError: a queue is unknown, or no pilot of it could ever take the jobs; says which and why.
        QueueOfflineError: a queue that could take them is offline, and no other is left.
    """
    if "*" not in wanted.queues:
        for name in wanted.queues:
            demand_queue(client, name)
            services.queue(name)
    named = None if "*" in wanted.queues else wanted.queues
    fitting, reasons = sift(_open_to(client, services, named), wanted.jobs, home=known.queue if known else None)
    if not fitting:
        kind = QueueOfflineError if _would_fit(_open_to(client, services, named), wanted.jobs) else RequestError
        raise kind(reasons[0] if len(reasons) == 1 else f"no queue fits: {'; '.join(reasons) or 'there is none'}")
    if known is not None:
        fitting = [queue for queue in fitting if queue.name not in known.failed_at] or fitting
        if known.queue in (queue.name for queue in fitting):
            return known.queue
    if len(fitting) == 1:
        return fitting[0].name
    waiting = await services.submissions.waiting([queue.name for queue in fitting])
    return min(fitting, key=lambda queue: (waiting[queue.name], queue.name)).name


def sift(
    queues: Iterable[QueueLike], jobs: Sequence[JobSpec], *, home: str | None
) -> tuple[list[QueueLike], list[str]]:
    """Queues that can take all of the jobs, and of the others one sentence each. ``home`` may be offline."""
    fitting, reasons = [], []
    for queue in queues:
        if reason := _obstacle(queue, jobs, home):
            reasons.append(reason)
        else:
            fitting.append(queue)
    return fitting, reasons


def _open_to(client: ClientIdentity, services: Services, named: Sequence[str] | None) -> list[QueueLike]:
    everything = services.queues()
    if named is not None:
        return [everything[name] for name in dict.fromkeys(named)]
    return [queue for name, queue in everything.items() if client.queues is None or name in client.queues]


def _would_fit(queues: Iterable[QueueLike], jobs: Sequence[JobSpec]) -> bool:
    """Whether one of them could take the jobs if it were online."""
    return any(not any(too_much(job, queue) for job in jobs) for queue in queues)


def _obstacle(queue: QueueLike, jobs: Sequence[JobSpec], home: str | None) -> str:
    if not queue.is_online and queue.name != home:
        return f"queue {queue.name} is offline: wait until its site puts it online, or name another one"
    return next(filter(None, (too_much(job, queue) for job in jobs)), "")


def too_much(spec: JobSpec, queue: QueueLike) -> str:
    """What no pilot of the queue could ever give the job, as a sentence; empty if it fits."""
    for need, wanted, offered in (
        ("cores", spec.cores, queue.slot.cores),
        ("memory_mib", spec.memory_mib, queue.slot.memory_mib),
        ("disk_mib", spec.disk_mib, queue.slot.disk_mib),
        ("walltime_s", spec.walltime_s, queue.slot.walltime_s - start_allowance_s(queue.slot.walltime_s)),
    ):
        if wanted > offered:
            there = f"a pilot of queue {queue.name} has {offered} to give"
            return f"job {spec.job_name} asks for {need} = {wanted}, but {there}"
    return ""


def whole_slot(queue: QueueLike) -> Offered:
    """What a fresh pilot of the queue offers."""
    slot = queue.slot
    return Offered(
        cores=slot.cores,
        memory_mib=slot.memory_mib,
        disk_mib=slot.disk_mib,
        walltime_s=slot.walltime_s - start_allowance_s(slot.walltime_s),
        features=frozenset(queue.features),
    )
