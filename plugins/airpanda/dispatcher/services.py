"""What the routes work with, wired once per process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from airpanda.core.errors import ConfigurationError, RequestError
from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from airpanda.credentials.bans import Bans
from airpanda.credentials.consent import Consents
from airpanda.credentials.registry import CredentialRegistry
from airpanda.credentials.vault import Vault
from airpanda.db.pool import Database
from airpanda.dispatcher.metrics import Metrics
from airpanda.dispatcher.revocations import Revocations
from airpanda.dispatcher.tokens import Issuer
from airpanda.jobs.board import Boards
from airpanda.jobs.ends import AttemptEnds
from airpanda.jobs.factory import FactoryRegistry
from airpanda.jobs.files import FileStore
from airpanda.jobs.observed import Observer
from airpanda.jobs.pilots import PilotRegistry
from airpanda.jobs.retention import Keep, Retention
from airpanda.jobs.retry import Needs
from airpanda.jobs.retry_rules import RetryRules
from airpanda.jobs.sandboxes import Sandboxes
from airpanda.jobs.shares import Shares
from airpanda.jobs.silence import Silence
from airpanda.jobs.single import SingleJobs
from airpanda.jobs.store import JobStore
from airpanda.jobs.submission import Submissions
from airpanda.jobs.upkeep import Upkeep
from airpanda.jobs.views import JobReader
from airpanda.jobs.waiting import Waiting
from airpanda.messages import CredentialScope


class SlotLike(Protocol):
    """What one pilot of a queue may use."""

    @property
    def cores(self) -> int: ...
    @property
    def memory_mib(self) -> int: ...
    @property
    def disk_mib(self) -> int: ...
    @property
    def walltime_s(self) -> int: ...


class QueueLike(Protocol):
    """What the dispatcher needs of a PanDA queue; ``airpanda.computing.queues.PandaQueue`` is one."""

    @property
    def name(self) -> str: ...
    @property
    def is_online(self) -> bool: ...
    @property
    def slot(self) -> SlotLike: ...
    @property
    def token_only(self) -> bool: ...
    @property
    def features(self) -> tuple[str, ...]: ...
    @property
    def credential_scope(self) -> str: ...
    def to_wire(self) -> dict[str, Any]: ...


Queues = Callable[[], Mapping[str, QueueLike]]


@dataclass(frozen=True)
class Services:
    """One of each, sharing one pool."""

    settings: Settings
    database: Database
    issuer: Issuer
    queues: Queues
    credentials: CredentialRegistry
    consents: Consents
    bans: Bans
    jobs: JobStore
    upkeep: Upkeep
    submissions: Submissions
    reader: JobReader
    pilots: PilotRegistry
    factory: FactoryRegistry
    files: FileStore
    sandboxes: Sandboxes
    observer: Observer
    single: SingleJobs
    revocations: Revocations
    retry_rules: RetryRules
    shares: Shares
    waiting: Waiting
    retention: Retention
    metrics: Metrics

    def queue(self, name: str) -> QueueLike:
        """A queue by name.

        Raises:
            RequestError: there is none.
        """
        found = self.queues().get(name)
        if found is None:
            raise RequestError(f"there is no queue {name!r}: name one of include/queues")
        return found

    def demand_server(self, server: str) -> None:
        """Raises:
        RequestError: pilots are not to be sent to this MyProxy server.
        """
        allowed = self.settings.myproxy_servers
        if allowed and server.lower() not in allowed:
            raise RequestError(f"{server} is none of this service's MyProxy servers ([airpanda] myproxy_servers)")


def make_services(
    settings: Settings, *, dsn: Secret[str], fernet_keys: Sequence[Secret[str]], queues: Queues
) -> Services:
    """Wire everything; opens nothing yet.

    Raises:
        ConfigurationError: signing key or Fernet keys cannot be used.
    """
    database = Database(dsn)
    issuer = Issuer(settings.signing_key)
    credentials = CredentialRegistry(database, Vault(fernet_keys))
    boards = Boards(database)
    silence = Silence(settings.suspected_after, settings.lease)

    def most(name: str) -> Needs | None:
        try:
            return _most(queues().get(name))
        except ConfigurationError:  # logged where the files are read: neither lease nor report waits for a site's hand
            return None

    def broadest(name: str) -> CredentialScope:
        queue = queues().get(name)
        return CredentialScope.JOB if queue is None else CredentialScope(queue.credential_scope)

    ends = AttemptEnds(most)
    settings.file_store.mkdir(mode=0o700, parents=True, exist_ok=True)
    sandboxes = Sandboxes(database, settings.file_store, max_bytes=settings.max_sandbox_bytes)
    return Services(
        settings=settings,
        database=database,
        issuer=issuer,
        queues=queues,
        credentials=credentials,
        consents=Consents(database),
        bans=Bans(database, changed=boards.changed),
        jobs=JobStore(
            database,
            credentials,
            boards,
            ends,
            silence=silence,
            heartbeat=settings.heartbeat_interval,
        ),
        upkeep=Upkeep(database, credentials, boards, ends, silence=silence),
        retry_rules=RetryRules(database),
        shares=Shares(database, boards),
        waiting=Waiting(database, boards, silence=silence),
        retention=Retention(database, settings.file_store, keep_of(settings)),
        metrics=Metrics(),
        submissions=Submissions(database, credentials, boards, most=most, broadest=broadest),
        reader=JobReader(database, silence),
        pilots=PilotRegistry(database, prefix=f"ap-{issuer.installation}-"),
        factory=FactoryRegistry(database),
        files=FileStore(database, settings.file_store, sandboxes, max_bytes=settings.max_upload_bytes),
        sandboxes=sandboxes,
        observer=Observer(database),
        single=SingleJobs(database, boards),
        revocations=Revocations(database),
    )


def keep_of(settings: Settings) -> Keep:
    """What ``[airpanda]`` says of retention."""
    return Keep(settings.archive_after, settings.remove_after, settings.audit_after, settings.sandbox_after)


def _most(queue: QueueLike | None) -> Needs | None:
    """What a job of this queue may ask for."""
    if queue is None:
        return None
    return Needs(queue.slot.memory_mib, queue.slot.walltime_s - start_allowance_s(queue.slot.walltime_s))


def start_allowance_s(walltime_s: int) -> int:
    """What of a slot is the pilot's own, before it asks for its first job."""
    return min(300, walltime_s // 10)
