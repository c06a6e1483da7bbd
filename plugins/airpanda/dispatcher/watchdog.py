"""The loop that takes jobs from silent pilots and keeps the counts short. Any number of them may run at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta

from airpanda.core.errors import ServiceError
from airpanda.core.settings import STATE_TIMEOUTS
from airpanda.credentials.registry import CredentialRegistry
from airpanda.jobs.store import JobStore

PERIOD_S = 3.0
_SELDOM = 10
_log = logging.getLogger(__name__)


async def watch(
    jobs: JobStore,
    registry: CredentialRegistry,
    *,
    longest: Mapping[str, timedelta] = STATE_TIMEOUTS,
    period_s: float = PERIOD_S,
    lost: Callable[[int], None] = lambda _n: None,
) -> None:
    """Run for ever; failures are logged and the next round tries again. ``lost`` is told how many jobs were taken."""
    round_nr = 0
    while True:
        try:
            seldom = round_nr % _SELDOM == 0
            lost(await one_round(jobs, longest=longest, closer=seldom))
            if seldom:
                await registry.seal_again()
            round_nr += 1
        except ServiceError as error:
            _log.warning("watchdog: %s", error)
        except Exception:  # noqa: BLE001
            # The outermost frame of a loop that must not end: without it no lease would ever run out.
            _log.exception("watchdog: unexpected failure")
        await asyncio.sleep(period_s)


async def one_round(jobs: JobStore, *, longest: Mapping[str, timedelta] = STATE_TIMEOUTS, closer: bool = True) -> int:
    """What is due now; harmless to repeat and to run twice at once. Answers how many jobs were taken back.

    Args:
        closer: also what need not be looked at each time: jobs that have waited too long, credentials that have ended.
    """
    taken = 0
    while panda_ids := await jobs.expire():
        taken += len(panda_ids)
        for panda_id in panda_ids:
            _log.warning("panda_id=%s lost its pilot's heartbeat", panda_id)
    while panda_ids := await jobs.end_overdue(longest):
        taken += len(panda_ids)
        _log.warning("%s jobs taken from their pilots: in one state for too long", len(panda_ids))
    while await jobs.move_checks_on():
        pass
    if closer:
        await _look_closer(jobs, longest)
    await jobs.fold_counts()
    return taken


async def _look_closer(jobs: JobStore, longest: Mapping[str, timedelta]) -> None:
    while closed := await jobs.close_without_credential():
        _log.warning("%s jobs closed: their owner's credential cannot serve them any more", closed)
    while closed := await jobs.close_overdue(longest["activated"]):
        _log.warning("%s jobs closed: no pilot has taken them in time", closed)
