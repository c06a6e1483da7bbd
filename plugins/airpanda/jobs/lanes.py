"""Lanes: waiting jobs of one owner that ask for the same, so that a pilot is matched with all of them at once."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airpanda.db.sql import lanes as sql
from airpanda.jobs.retry import Needs
from airpanda.messages import JobSpec

MAX_SHAPES = 64
_BANDS = 8


@dataclass(frozen=True, order=True)
class Shape:
    """What a job asks for."""

    priority: int
    cores: int
    memory_mib: int
    disk_mib: int
    walltime_s: int
    features: tuple[str, ...]
    working_group: str


@dataclass(frozen=True)
class Lane:
    """A lane on record: the shape, whose jobs, on which queue."""

    lane_id: int
    queue: str
    owner: str
    owner_dn: str
    fqans: tuple[str, ...]
    retriever_dn: str
    shape: Shape

    @property
    def vo(self) -> str:
        """The first component of the first attribute; empty without one."""
        return vo_of(self.fqans)


def vo_of(fqans: Sequence[str]) -> str:
    """The virtual organisation of the first attribute."""
    return fqans[0].split("/")[1] if fqans else ""


def shape_of(spec: JobSpec) -> Shape:
    """What this job asks for."""
    return Shape(
        priority=spec.priority,
        cores=spec.cores,
        memory_mib=spec.memory_mib,
        disk_mib=spec.disk_mib,
        walltime_s=spec.walltime_s,
        features=tuple(sorted(set(spec.features))),
        working_group=spec.working_group,
    )


def shapes_of(specs: Iterable[JobSpec]) -> list[Shape]:
    """That of each of many jobs, most of which ask for the same."""
    known: dict[tuple[Any, ...], Shape] = {}
    found: list[Shape] = []
    for spec in specs:
        numbers = (spec.priority, spec.cores, spec.memory_mib, spec.disk_mib, spec.walltime_s)
        key = (*numbers, *spec.features, spec.working_group)
        shape = known.get(key)
        if shape is None:
            shape = known[key] = shape_of(spec)
        found.append(shape)
    return found


def gathered(wanted: Iterable[Shape]) -> dict[Shape, Shape]:
    """For each shape the one that it is dispatched by: itself, as long as there are no more than ``MAX_SHAPES``.

    Else similar ones share one that asks for the most of each and has the highest priority of them. What fits a whole
    slot one by one fits it then, too.
    """
    distinct = sorted(set(wanted))
    if len(distinct) <= MAX_SHAPES:
        return {shape: shape for shape in distinct}
    alike: dict[tuple[tuple[str, ...], str], list[Shape]] = defaultdict(list)
    for shape in distinct:
        alike[shape.features, shape.working_group].append(shape)
    found: dict[Shape, Shape] = {}
    for shapes in alike.values():
        for band in _chunks(shapes):  # by priority
            for chunk in _chunks(sorted(band, key=lambda each: (each.cores, each.walltime_s, each.memory_mib))):
                found.update(dict.fromkeys(chunk, _most(chunk)))
    return found


def _chunks(shapes: list[Shape]) -> Iterable[list[Shape]]:
    size = -(-len(shapes) // _BANDS)
    return (shapes[first : first + size] for first in range(0, len(shapes), size))


def _most(shapes: Sequence[Shape]) -> Shape:
    most = {name: max(getattr(each, name) for each in shapes) for name in _NUMBERS}
    return replace(shapes[0], **most)


_NUMBERS = ("priority", "cores", "memory_mib", "disk_mib", "walltime_s")


async def open_lanes(connection: Any, credential: Any, queue: str, shapes: Iterable[Shape]) -> dict[Shape, int]:
    """The lanes of these shapes for the owner of this credential; made where there is none yet."""
    rows = {_digest(row): (shape, row) for shape in shapes for row in [_row(credential, queue, shape)]}
    # Always in the same order, so that two submissions never wait for each other.
    await connection.executemany(sql.OPEN_LANES, [(digest, *rows[digest][1]) for digest in sorted(rows)])
    known = await connection.fetch(sql.LANE_IDS, list(rows))
    return {rows[row["digest"]][0]: row["lane_id"] for row in known}


async def follow_credential(
    connection: Any, first: int, last: int, credential: Any, queue: str | None, most: Needs | None
) -> None:
    """Put waiting jobs into the lanes of another queue, or of another credential of their owner.

    ``queue`` None: each stays at its queue. What retry rules have raised comes along as far as a job there may ask for
    it (``most``; None: nobody knows).
    """
    lanes = [lane_of(row) for row in await connection.fetch(sql.LANES_OF, first, last)]
    fqans, dn = tuple(credential["fqans"]), credential["retriever_dn"]
    new = {
        lane: replace(lane, queue=queue or lane.queue, fqans=fqans, retriever_dn=dn, shape=_within(lane.shape, most))
        for lane in lanes
    }
    if most is not None:
        await connection.execute(sql.FIT, first, last, most.memory_mib, most.walltime_s)
    ids: dict[Lane, int] = {}
    for at in sorted({lane.queue for lane in new.values()}):
        old = [lane for lane in lanes if new[lane] != lane and new[lane].queue == at]
        opened = await open_lanes(connection, credential, at, {new[lane].shape for lane in old}) if old else {}
        ids |= {lane: opened[new[lane].shape] for lane in old}
    if ids:
        await connection.execute(sql.CHANGE_LANES, first, last, [lane.lane_id for lane in ids], list(ids.values()))


def _within(shape: Shape, most: Needs | None) -> Shape:
    if most is None:
        return shape
    memory_mib, walltime_s = min(shape.memory_mib, most.memory_mib), min(shape.walltime_s, most.walltime_s)
    return replace(shape, memory_mib=memory_mib, walltime_s=walltime_s)


async def lane_with(connection: Any, lane_id: int, needs: Needs) -> int:
    """The lane like this one for a job that asks for so much now."""
    (row,) = await connection.fetch(sql.LANES, [lane_id])
    lane = lane_of(row)
    wanted = replace(
        lane.shape,
        memory_mib=max(lane.shape.memory_mib, needs.memory_mib),
        walltime_s=max(lane.shape.walltime_s, needs.walltime_s),
    )
    return (await open_lanes(connection, row, lane.queue, [wanted]))[wanted]


def lane_of(row: Mapping[str, Any]) -> Lane:
    """A row of ``panda_lane``."""
    return Lane(
        lane_id=row["lane_id"],
        queue=row["queue"],
        owner=row["owner"],
        owner_dn=row["owner_dn"],
        fqans=tuple(row["fqans"]),
        retriever_dn=row["retriever_dn"],
        shape=Shape(
            features=tuple(row["features"]),
            working_group=row["working_group"],
            **{name: row[name] for name in _NUMBERS},
        ),
    )


def _row(credential: Any, queue: str, shape: Shape) -> tuple[Any, ...]:
    return (
        queue,
        credential["owner"],
        credential["owner_dn"],
        shape.working_group,
        list(credential["fqans"]),
        credential["retriever_dn"],
        *(getattr(shape, name) for name in _NUMBERS),
        list(shape.features),
    )


def _digest(row: tuple[Any, ...]) -> bytes:
    return hashlib.sha256(json.dumps(row).encode()).digest()
