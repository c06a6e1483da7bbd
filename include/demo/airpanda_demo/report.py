"""What the demonstration found: the jobs as the dispatcher has them, the table, ``report.json``, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airpanda.messages import JobView

MIN_FINISHED = 23
OWNERS = 3
MASS_GEV, TOLERANCE_GEV = 91.0, 1.0


@dataclass(frozen=True)
class JobLine:
    """One job, with the account *as seen from outside the payload*."""

    panda_id: int
    dag_id: str
    task_id: str
    owner_dn: str
    queue: str
    status: str
    attempt_nr: int
    pilot_id: int | None
    pilot_uid: int | None
    account_uid: int | None
    account_name: str
    identity_switched: bool | None
    exit_code: int | None
    wall_s: float | None
    cpu_s: float | None

    @classmethod
    def of(cls, job: JobView) -> JobLine:
        """The job's latest attempt in one line."""
        last = job.attempts[0] if job.attempts else None
        return cls(
            panda_id=job.panda_id,
            dag_id=job.ti.dag_id,
            task_id=job.ti.task_id,
            owner_dn=job.owner_dn,
            queue=job.queue,
            status=job.status.value,
            attempt_nr=job.attempt_nr,
            pilot_id=last.pilot_id if last else None,
            pilot_uid=last.pilot_uid if last else None,
            account_uid=last.account_uid if last else None,
            account_name=last.account_name if last else "",
            identity_switched=last.identity_switched if last else None,
            exit_code=last.exit_code if last else None,
            wall_s=last.wall_s if last else None,
            cpu_s=last.cpu_s if last else None,
        )


@dataclass(frozen=True)
class Peak:
    """The fit of one analysis, and the picture it belongs to."""

    owner: str
    picture: str
    result: dict[str, Any]

    @property
    def mass_gev(self) -> float:
        return float(self.result["mass_gev"])


def table(jobs: Sequence[JobLine]) -> str:
    """A table for people; columns as wide as they need to be."""
    head = ("PandaID", "DAG.task", "owner", "account(uid)", "switched", "pilot(uid)", "try", "exit", "wall s", "cpu s")
    rows = [head, *(_row(job) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _row(job: JobLine) -> tuple[str, ...]:
    switched = {True: "yes", False: "NO", None: "-"}[job.identity_switched]
    return (
        str(job.panda_id),
        f"{job.dag_id}.{job.task_id}",
        job.owner_dn,
        f"{job.account_name or '-'}({_shown(job.account_uid)})",
        switched,
        f"{_shown(job.pilot_id)}({_shown(job.pilot_uid)})",
        str(job.attempt_nr),
        _shown(job.exit_code) if job.status == "finished" else f"{job.status} {_shown(job.exit_code)}",
        _seconds(job.wall_s),
        _seconds(job.cpu_s),
    )


def _shown(value: int | None) -> str:
    return "-" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def verdict(jobs: Sequence[JobLine], peaks: Sequence[Peak], *, switches: bool) -> list[str]:
    """What of the demonstration's promises does not hold; empty when all do.

    Args:
        switches: whether the site has an identity switch (it was started by root).
    """
    wrong = [f"PandaID {job.panda_id} is {job.status}" for job in jobs if job.status != "finished"]
    finished = [job for job in jobs if job.status == "finished"]
    if len(finished) < MIN_FINISHED:
        wrong.append(f"{len(finished)} jobs finished, {MIN_FINISHED} were to finish")
    owners = {job.owner_dn for job in finished}
    if len(owners) != OWNERS:
        wrong.append(f"jobs of {len(owners)} owners finished, not of {OWNERS}")
    wrong += _wrong_accounts(finished, switches=switches)
    if not peaks:
        wrong.append("no analysis left a picture")
    wrong += [
        f"the peak in {peak.owner}'s fit is at {peak.mass_gev:.3f} GeV, not at {MASS_GEV:g} ± {TOLERANCE_GEV:g} GeV"
        for peak in peaks
        if not abs(peak.mass_gev - MASS_GEV) <= TOLERANCE_GEV
    ]
    return wrong


def _wrong_accounts(finished: Sequence[JobLine], *, switches: bool) -> list[str]:
    if not switches:
        claimed = [job.panda_id for job in finished if job.identity_switched is not False]
        return [f"PandaID {claimed[0]} does not say that its identity was not switched"] if claimed else []
    wrong = [f"PandaID {job.panda_id}: the identity was not switched" for job in finished if not job.identity_switched]
    wrong += [
        f"PandaID {job.panda_id} ran as the pilot's account (uid {job.pilot_uid}) or an unknown one"
        for job in finished
        if job.account_uid is None or job.account_uid in (job.pilot_uid, 0)
    ]
    accounts: dict[str, set[int | None]] = {}
    for job in finished:
        accounts.setdefault(job.owner_dn, set()).add(job.account_uid)
    different = set().union(*accounts.values()) if accounts else set()
    if any(len(uids) != 1 for uids in accounts.values()) or len(different) != len(accounts):
        wrong.append(f"owners and accounts do not correspond one to one: {accounts}")
    return wrong


def write(
    path: Path, jobs: Sequence[JobLine], peaks: Sequence[Peak], *, elapsed_s: float, about: dict[str, Any]
) -> None:
    """``report.json``; ``about`` adds more to it (phases, URL, conditions)."""
    content = {
        "jobs": [asdict(job) for job in jobs],
        "picture": peaks[0].picture if peaks else None,
        "elapsed_s": round(elapsed_s, 2),
        "peaks": {peak.owner: {**peak.result, "picture": peak.picture} for peak in peaks},
        **about,
    }
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
