"""Retry rules on record: listed, added, ended. What they mean is in ``retry``."""

from __future__ import annotations

from typing import Any

from airpanda.core.errors import NotFoundError
from airpanda.db.pool import Database
from airpanda.db.sql import retry as sql
from airpanda.messages import RetryRuleSet, RetryRuleView


class RetryRules:
    """Reads and writes ``panda_retry_rule``; what is written holds from the next decision on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[RetryRuleView]:
        """Every rule, those that have ended too: a thousand at most, those without an end first, then the newest."""
        async with self._database.connection() as connection:
            return [_view(row) for row in await connection.fetch(sql.ALL)]

    async def one(self, rule_id: int) -> RetryRuleView:
        """One rule; its queue never changes.

        Raises:
            NotFoundError: there is no such rule.
        """
        return await self._row(sql.ONE, rule_id)

    async def add(self, wanted: RetryRuleSet, *, actor: str) -> RetryRuleView:
        """One more rule. A repeat adds another one like it, which changes nothing."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                sql.ADD,
                wanted.source.value,
                wanted.code,
                wanted.pattern,
                wanted.queue,
                wanted.action.value,
                wanted.factor,
                wanted.max_attempt,
                wanted.is_active,
                wanted.expires_at,
                wanted.description,
                actor,
            )
        return _view(row)

    async def end(self, rule_id: int) -> RetryRuleView:
        """Let a rule expire now. A repeat changes nothing that counts.

        Raises:
            NotFoundError: there is no such rule.
        """
        return await self._row(sql.END, rule_id)

    async def _row(self, statement: str, rule_id: int) -> RetryRuleView:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(statement, rule_id)
        if row is None:
            raise NotFoundError(f"there is no retry rule {rule_id}")
        return _view(row)


def _view(row: Any) -> RetryRuleView:
    return RetryRuleView(**dict(row))
