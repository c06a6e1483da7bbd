"""Whether a panda task may use a credential: asked at submission, where a person still reads the answer.

The claim asks all of it again (``db.sql.jobs.ACQUIRE``), so that what changes later holds at the next dispatch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from airpanda.core.errors import BannedError, CredentialError
from airpanda.core.identity import Fqan
from airpanda.db.sql import credentials as sql
from airpanda.messages import CredentialScope, JobSpec


def demand_readable(row: Any, key_ids: Collection[str]) -> None:
    """Raises:
    CredentialError: revoked or destroyed, or sealed with a key that this service no longer has.
    """
    number = row["credential_id"]
    if row["state"] != "staged":
        raise CredentialError(f"credential {number} was {row['state']}: stage a fresh one")
    if row["sealed_by"] not in key_ids:
        raise CredentialError(
            f"the passphrase of credential {number} was sealed with a Fernet key that is configured no more: the"
            " operators of this service must put that key back behind the new one, or its owner stage a fresh one"
        )


def demand_scope(row: Any, broadest: CredentialScope, *, queue: str) -> None:
    """Whether a site lets a credential serve so much: what is stolen there is worth no more than that.

    Raises:
        CredentialError: its scope is broader than the queue's file allows.
    """
    scopes = list(CredentialScope)  # the narrowest first
    if scopes.index(CredentialScope(row["scope"])) > scopes.index(broadest):
        raise CredentialError(
            f"credential {row['credential_id']} has the scope {row['scope']}, and queue {queue} takes none that is"
            f" broader than {broadest.value}: stage one of scope {broadest.value}"
        )


def demand_lasting(row: Any, *, walltime_s: int, now: datetime) -> None:
    """Raises:
    CredentialError: it ends before a job that starts now could.
    """
    left_s = int((row["expires_at"] - now).total_seconds())
    if left_s < walltime_s:
        raise CredentialError(
            f"the credential of {row['owner_dn']} ends in {max(left_s, 0)} s, before the job's time limit of"
            f" {walltime_s} s: stage one that lives longer"
        )


async def demand_allowed(connection: Any, row: Any, *, client: str, queue: str, now: datetime) -> None:
    """Raises:
    BannedError: the owner is banned.
    CredentialError: the owner has not consented to this client and queue.
    """
    ban = await connection.fetchrow(sql.BAN_OF, row["credential_id"])
    if ban is not None:
        raise BannedError(f"{ban['name']} is banned ({ban['reason']}): ask the operators of this service")
    given = await connection.fetch(sql.CONSENTS_FOR, row["owner_dn"], client, row["credential_id"])
    if not any(each["until"] > now and not {"*", queue}.isdisjoint(each["queues"]) for each in given):
        raise CredentialError(
            f"{row['owner_dn']} has not consented to client {client!r} using credential {row['credential_id']} on queue"
            f" {queue!r}, or no longer: the owner must consent (airpanda proxy consent)"
        )


def demand_groups(row: Any, jobs: Iterable[JobSpec]) -> None:
    """Whether the credential shows the working groups that its jobs name.

    A group is one component of an attribute's group, whole, below the organisation that the jobs count for: that of the
    first attribute. Every member counts, in whatever role.

    Raises:
        CredentialError: one is not shown.
    """
    shown = [Fqan.parse(text) for text in row["fqans"]]
    held = {name for fqan in shown if fqan.vo == shown[0].vo for name in fqan.group.split("/")[2:]}
    for job in jobs:
        if job.working_group and job.working_group not in held:
            has = ", ".join(map(str, shown)) or "no VOMS attribute"
            raise CredentialError(
                f"job {job.job_name} names the working group {job.working_group!r}, which credential"
                f" {row['credential_id']} of {row['owner_dn']} does not show ({has}): its owner must stage a proxy of a"
                " member of that group, or the job name none"
            )


async def bind(connection: Any, row: Any, *, task_id: int, n_jobs: int) -> None:
    """Let the credential serve this panda task; for good, unless its scope is ``user``.

    Raises:
        CredentialError: it serves another one, or one job only.
    """
    number, scope = row["credential_id"], row["scope"]
    if scope == "job" and n_jobs != 1:
        raise CredentialError(f"credential {number} is for one job, not for {n_jobs}: stage one of scope task")
    if await connection.fetchval(sql.BIND, number, task_id) is None:
        raise CredentialError(
            f"credential {number} serves another panda task, and its scope is {scope}: stage one for this task, or one"
            " of scope user"
        )
