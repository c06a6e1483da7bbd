"""What the demonstration found: the jobs as the dispatcher has them, the table, ``report.json``, and the verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from airpanda.messages import JobView
from airpanda_demo.switching import Switching

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
    launcher: str | None = None
    mapping: str | None = None

    @property
    def label(self) -> str:
        """What the pilot calls this attempt where it asks for its owner's account."""
        return f"PandaID={self.panda_id} attempt={self.attempt_nr}"

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
class Launch:
    """One payload in the launcher's own log: how the launcher was started, what gave the account, and which."""

    launcher: str
    mapping: str
    dn: str
    uid: int

    @classmethod
    def of(cls, record: Mapping[str, object]) -> Launch:
        return cls(str(record["launcher"]), str(record["mapping"]), str(record["dn"]), int(str(record["uid"])))


def with_launches(jobs: Sequence[JobLine], launches: Mapping[str, Launch]) -> list[JobLine]:
    """The jobs, each with how the launcher says that it started its payload; only where person and account agree."""
    found = [(job, launches.get(job.label)) for job in jobs]
    return [
        replace(job, launcher=launch.launcher, mapping=launch.mapping)
        if launch is not None and (launch.dn, launch.uid) == (job.owner_dn, job.account_uid)
        else job
        for job, launch in found
    ]


@dataclass(frozen=True)
class Peak:
    """The fit of one analysis, and the picture it belongs to."""

    owner: str
    picture: str
    result: dict[str, Any]

    @property
    def mass_gev(self) -> float:
        return float(self.result["mass_gev"])


_COLUMNS = (
    "PandaID", "DAG.task", "owner", "account(uid)", "switched", "by", "pilot(uid)", "try", "exit", "wall s", "cpu s"
)  # fmt: skip


def table(jobs: Sequence[JobLine]) -> str:
    """A table for people; columns as wide as they need to be."""
    rows = [_COLUMNS, *(_row(job) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
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
        f"{job.launcher}+{job.mapping}" if job.launcher else "-",
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


def summary(jobs: Sequence[JobLine], switching: Switching) -> str:
    """How many payloads got their accounts in which way."""
    ways = Counter((job.launcher, job.mapping) for job in jobs if job.launcher)
    counted = ", ".join(f"{way}+{mapping} {number}" for (way, mapping), number in sorted(ways.items())) or "none"
    return f"accounts: {switching.words}.\nby the launcher's own log, of {len(jobs)} payloads: {counted}"


def verdict(jobs: Sequence[JobLine], peaks: Sequence[Peak], *, switching: Switching | None) -> list[str]:
    """What of the demonstration's promises does not hold; empty when all do.

    Args:
        switching: the site's identity switch; None where it has none (it was not started by root).
    """
    wrong = [f"PandaID {job.panda_id} is {job.status}" for job in jobs if job.status != "finished"]
    finished = [job for job in jobs if job.status == "finished"]
    if len(finished) < MIN_FINISHED:
        wrong.append(f"{len(finished)} jobs finished, {MIN_FINISHED} were to finish")
    owners = {job.owner_dn for job in finished}
    if len(owners) != OWNERS:
        wrong.append(f"jobs of {len(owners)} owners finished, not of {OWNERS}")
    wrong += _wrong_accounts(finished, switches=switching is not None)
    if switching is not None:
        wrong += [
            f"PandaID {job.panda_id} ran by {job.launcher}+{job.mapping}, not by {switching.way}+{switching.mapping}"
            for job in finished
            if (job.launcher, job.mapping) != (switching.way, switching.mapping)
        ]
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
