"""Which lane a pilot is served from, and why not from another: pure functions of what is known.

Shares are nested: virtual organisation, working group, owner. The organisation furthest below its share comes first,
within it the working group; within that PanDA's user priority decides: what was asked for, less a fifth of the number
of jobs that the owner has with pilots, less a hundred times what the owner uses beyond a fair part of the group. Then
retries, then age. Every tenth choice goes by age alone, so that nothing waits for ever.

Source: panda-server, ``taskbuffer`` (user priority), ``GlobalShares`` and its sloppy dispatch of a tenth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from airpanda.jobs.lanes import Lane

BY_AGE_EVERY = 10
Position = tuple[int, int]
"""Where a job stands in its lane: the transaction that let it wait, its PandaID."""
Path = tuple[str, ...]
"""A node of the tree of shares: (vo,), (vo, working group) or (vo, working group, owner)."""


@dataclass(frozen=True)
class Offered:
    """What a pilot has left. ``retriever_dn`` None: whatever a credential says, as the queue allows."""

    cores: int
    memory_mib: int
    disk_mib: int
    walltime_s: int
    features: frozenset[str] = frozenset()
    avoid_owners: frozenset[str] = frozenset()
    retriever_dn: str | None = None


class Lack(Enum):
    """Why a lane is not served, as a sentence with the job's and the pilot's value."""

    CORES = "it asks for {wanted} cores and the pilot has {offered}"
    MEMORY = "it asks for {wanted} MiB of memory and the pilot has {offered}"
    DISK = "it asks for {wanted} MiB of disk and the pilot has {offered}"
    TIME = "it asks for {wanted} s and the pilot has {offered} left"
    FEATURES = "it asks for the features {wanted} and the pilot offers {offered}"
    RETRIEVER = "its owner's credential names {wanted} as retriever and the pilot is {offered}"
    AVOIDED = "the pilot could not start jobs of {wanted} lately"
    BANNED = "{wanted} is banned: {offered}"
    CAP_JOBS = "{wanted} may have {offered} jobs with pilots at once, and has them"
    CAP_CORES = "{wanted} may use {offered} cores at once, and uses them"


@dataclass(frozen=True)
class Refusal:
    """A lack and the two values that show it."""

    lack: Lack
    wanted: object = ""
    offered: object = ""

    def __str__(self) -> str:
        return self.lack.value.format(wanted=_shown(self.wanted), offered=_shown(self.offered))


def _shown(value: object) -> str:
    if isinstance(value, frozenset | tuple):
        return ", ".join(sorted(map(str, value))) or "none"
    return str(value)


@dataclass(frozen=True)
class Share:
    """What operators say of a node: its weight among its siblings.

    Also what its jobs may use at once; of an owner what is added to the priority they ask for.
    """

    weight: float = 1.0
    max_jobs: int | None = None
    max_cores: int | None = None
    priority_offset: int = 0


@dataclass(frozen=True)
class Rules:
    """Shares by kind (``vo``, ``working_group``, ``owner``) and name (``*`` for any other), and bans with reasons."""

    shares: Mapping[tuple[str, str], Share] = field(default_factory=dict)
    banned_dns: Mapping[str, str] = field(default_factory=dict)
    banned_fqans: Mapping[str, str] = field(default_factory=dict)

    def share(self, kind: str, name: str) -> Share:
        return self.shares.get((kind, name)) or self.shares.get((kind, "*")) or _PLAIN


_PLAIN = Share()
_KINDS = ("vo", "working_group", "owner")


class Usage:
    """Jobs and cores with pilots, by node of the tree and by owner."""

    def __init__(self) -> None:
        self.jobs: dict[Path, int] = defaultdict(int)
        self.cores: dict[Path, int] = defaultdict(int)
        self.owner_jobs: dict[str, int] = defaultdict(int)
        self.owner_cores: dict[str, int] = defaultdict(int)

    def add(self, lane: Lane, n: int, cores: int | None = None) -> None:
        """Count n jobs of this lane."""
        cores = n * lane.shape.cores if cores is None else cores
        for node in path_of(lane):
            self.jobs[node] += n
            self.cores[node] += cores
        self.owner_jobs[lane.owner] += n
        self.owner_cores[lane.owner] += cores


def path_of(lane: Lane) -> tuple[Path, Path, Path]:
    """The nodes that a lane's jobs count for, the outermost first."""
    vo, group = lane.vo, lane.shape.working_group
    return (vo,), (vo, group), (vo, group, lane.owner)


def refusal(lane: Lane, offered: Offered) -> Refusal | None:
    """Why a pilot with this offer is never served from this lane; None: it fits."""
    shape = lane.shape
    for lack, wanted, has in (
        (Lack.CORES, shape.cores, offered.cores),
        (Lack.MEMORY, shape.memory_mib, offered.memory_mib),
        (Lack.DISK, shape.disk_mib, offered.disk_mib),
        (Lack.TIME, shape.walltime_s, offered.walltime_s),
    ):
        if wanted > has:
            return Refusal(lack, wanted, has)
    if not offered.features.issuperset(shape.features):
        return Refusal(Lack.FEATURES, shape.features, offered.features)
    if offered.retriever_dn is not None and lane.retriever_dn != offered.retriever_dn:
        return Refusal(Lack.RETRIEVER, lane.retriever_dn, offered.retriever_dn)
    if lane.owner_dn in offered.avoid_owners:
        return Refusal(Lack.AVOIDED, lane.owner_dn)
    return None


def ban_of(lane: Lane, rules: Rules) -> Refusal | None:
    """The ban that holds the lane's owner. The claim asks the database again."""
    if lane.owner_dn in rules.banned_dns:
        return Refusal(Lack.BANNED, lane.owner_dn, rules.banned_dns[lane.owner_dn])
    for name, reason in rules.banned_fqans.items():
        if any(fqan == name or fqan.startswith(f"{name}/") for fqan in lane.fqans):
            return Refusal(Lack.BANNED, name, reason)
    return None


def room(lane: Lane, rules: Rules, usage: Usage, wanted: int) -> int | Refusal:
    """How many of ``wanted`` jobs the caps leave that hold the lane's owner, working group and organisation.

    A refusal instead of 0. An owner's cap is for all of its jobs, in whatever group they are; a group's is for each
    organisation that has a group of this name.
    """
    owner, group, vo = lane.owner, lane.shape.working_group, lane.vo
    share = rules.share("owner", owner)
    left = _left(share, usage.owner_jobs.get(owner, 0), usage.owner_cores.get(owner, 0), lane.shape.cores, wanted)
    if isinstance(left, Lack):
        return _refused(left, share, owner)
    for node in ((vo, group), (vo,)):
        share = share_of(node, rules)
        left = _left(share, usage.jobs.get(node, 0), usage.cores.get(node, 0), lane.shape.cores, left)
        if isinstance(left, Lack):
            return _refused(left, share, _said_of(node))
    return left


def _left(share: Share, jobs: int, cores: int, cores_each: int, wanted: int) -> int | Lack:
    """How many more jobs of so many cores a share's caps leave; or the cap that leaves none."""
    if share.max_jobs is not None:
        wanted = min(wanted, share.max_jobs - jobs)
        if wanted <= 0:
            return Lack.CAP_JOBS
    if share.max_cores is not None:
        wanted = min(wanted, (share.max_cores - cores) // cores_each)
        if wanted <= 0:
            return Lack.CAP_CORES
    return wanted


def _refused(cap: Lack, share: Share, who: str) -> Refusal:
    return Refusal(cap, who, share.max_jobs if cap is Lack.CAP_JOBS else share.max_cores)


def _said_of(node: Path) -> str:
    vo = f"organisation {node[0]}" if node[0] else "jobs without an organisation"
    if len(node) == 1:
        return vo
    return f"working group {node[1]} of {vo}" if node[1] else f"jobs of {vo} without a working group"


@dataclass(frozen=True)
class Candidate:
    """A lane with somebody in it: who stands first, and whether they wait for another attempt."""

    lane: Lane
    is_retry: bool
    head: Position

    @property
    def number(self) -> int:
        """As in ``panda_job.lane``."""
        return -self.lane.lane_id if self.is_retry else self.lane.lane_id


def ranked(candidates: Collection[Candidate], rules: Rules, usage: Usage, *, by_age: bool = False) -> list[Candidate]:
    """In the order of dispatch."""
    if by_age:
        return sorted(candidates, key=lambda each: each.head)
    over = over_shares({node for each in candidates for node in path_of(each.lane)}, rules, usage)

    def key(each: Candidate) -> tuple[object, ...]:
        vo, group, owner = path_of(each.lane)
        asked_for = each.lane.shape.priority + rules.share("owner", each.lane.owner).priority_offset
        priority = user_priority(asked_for, usage.jobs.get(owner, 0), over[owner])
        return over[vo], over[group], -priority, not each.is_retry, each.head

    return sorted(candidates, key=key)


def user_priority(asked_for: int, n_jobs: int, over_share: float) -> int:
    """PanDA's formula: 1000 and the job's offset (together what is asked for), less n/5, less 100 times the weight."""
    return asked_for - n_jobs // 5 - int(100 * max(0.0, over_share))


def share_of(path: Path, rules: Rules) -> Share:
    """What operators say of this node."""
    return rules.share(_KINDS[len(path) - 1], path[-1])


def over_shares(waiting: Iterable[Path], rules: Rules, usage: Usage) -> dict[Path, float]:
    """By how much of its parent's cores each node uses more than its share; below 0: less."""
    siblings: dict[Path, set[Path]] = defaultdict(set)
    for node in {*waiting, *(node for node, cores in usage.cores.items() if cores > 0)}:
        siblings[node[:-1]].add(node)
    over: dict[Path, float] = {}
    for nodes in siblings.values():
        weights = {node: share_of(node, rules).weight for node in nodes}
        total, used = sum(weights.values()), sum(usage.cores.get(node, 0) for node in nodes)
        for node in nodes:
            target = weights[node] / total if total else 0.0
            over[node] = (usage.cores.get(node, 0) / used if used else 0.0) - target
    return over
