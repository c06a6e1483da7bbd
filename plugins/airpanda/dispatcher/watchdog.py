"""The loops that take jobs from silent pilots, keep the counts short, and put away what has ended.

Any number of them may run at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from airpanda.core.errors import ServiceError
from airpanda.core.settings import STATE_TIMEOUTS
from airpanda.credentials.registry import CredentialRegistry
from airpanda.jobs.retention import Retention
from airpanda.jobs.upkeep import Upkeep

PERIOD_S = 3.0
SHORT_PERIOD_S = 0.5
RETENTION_PERIOD_S = 60.0
RETENTION_REST = 3.0
_SELDOM = 10
_log = logging.getLogger(__name__)


async def watch(
    upkeep: Upkeep,
    registry: CredentialRegistry,
    *,
    longest: Mapping[str, timedelta] = STATE_TIMEOUTS,
    period_s: float = PERIOD_S,
    lost: Callable[[int], None] = lambda _n: None,
    suspected: Callable[[int], None] = lambda _n: None,
) -> None:
    """Run for ever; failures are logged and the next round tries again.

    Args:
        lost: is told how many jobs were taken from their pilots.
        suspected: is told how many are with pilots that are silent for long, and may lose them.
    """
    round_nr = n_suspected = 0
    while True:
        try:
            seldom = round_nr % _SELDOM == 0
            lost(await one_round(upkeep, longest=longest, closer=seldom))
            before, n_suspected = n_suspected, await upkeep.count_suspected()
            suspected(n_suspected)
            if n_suspected > before:
                _log.warning("%s jobs are with pilots that are suspected: silent for long", n_suspected)
            if seldom:
                await registry.seal_again()
                if forgotten := await registry.forget_expired():
                    _log.info("passphrases of %s credentials forgotten: they have ended", forgotten)
            round_nr += 1
        except ServiceError as error:
            _log.warning("watchdog: %s", error)
        except Exception:  # noqa: BLE001
            # The outermost frame of a loop that must not end: without it no lease would ever run out.
            _log.exception("watchdog: unexpected failure")
        await asyncio.sleep(period_s)


async def keep_counts_short(upkeep: Upkeep, *, period_s: float = SHORT_PERIOD_S) -> None:
    """Run for ever beside ``watch``, for times when thousands of jobs change within seconds."""
    while True:
        try:
            await upkeep.keep_counts_short()
        except ServiceError as error:
            _log.warning("counts: %s", error)
        except Exception:  # noqa: BLE001
            # The outermost frame of a loop that must not end.
            _log.exception("counts: unexpected failure")
        await asyncio.sleep(period_s)


async def one_round(upkeep: Upkeep, *, longest: Mapping[str, timedelta] = STATE_TIMEOUTS, closer: bool = True) -> int:
    """What is due now; harmless to repeat and to run twice at once. Answers how many jobs were taken back.

    Args:
        closer: also what need not be looked at each time: jobs that have waited too long, credentials that have ended.
    """
    taken = 0
    while panda_ids := await upkeep.expire():
        taken += len(panda_ids)
        for panda_id in panda_ids:
            _log.warning("panda_id=%s lost its pilot's heartbeat", panda_id)
    while panda_ids := await upkeep.end_overdue(longest):
        taken += len(panda_ids)
        _log.warning("%s jobs taken from their pilots: in one state for too long", len(panda_ids))
    while await upkeep.move_checks_on():
        pass
    if closer:
        await _look_closer(upkeep, longest)
    await upkeep.fold_counts()
    return taken


async def _look_closer(upkeep: Upkeep, longest: Mapping[str, timedelta]) -> None:
    while closed := await upkeep.close_without_credential():
        _log.warning("%s jobs closed: their owner's credential cannot serve them any more", closed)
    while closed := await upkeep.close_overdue(longest["activated"]):
        _log.warning("%s jobs closed: no pilot has taken them in time", closed)


async def keep_short(retention: Retention, *, period_s: float = RETENTION_PERIOD_S) -> None:
    """Run retention for ever, a step at a time; each step is followed by a rest ``RETENTION_REST`` times as long."""
    while True:
        await asyncio.sleep(period_s)
        try:
            began = time.monotonic()
            while done := await retention.step():
                _log.info("retention: %s", done)
                await asyncio.sleep(RETENTION_REST * (time.monotonic() - began))
                began = time.monotonic()
        except ServiceError as error:
            _log.warning("retention: %s", error)
        except Exception:  # noqa: BLE001
            # The outermost frame of a loop that must not end.
            _log.exception("retention: unexpected failure")
