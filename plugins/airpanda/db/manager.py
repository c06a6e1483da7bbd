"""Airflow's hook for our tables: name it in ``[database] external_db_managers``.

external_db_managers = airpanda.db.manager.AirpandaDBManager
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow import settings
from airflow.utils.db_manager import BaseDBManager
from alembic import command

from airpanda.core.errors import ConfigurationError
from airpanda.db.models import metadata

HERE = Path(__file__).parent


class AirpandaDBManager(BaseDBManager):
    """Creates, upgrades, downgrades and drops the ``panda_`` tables with Airflow's own commands."""

    metadata = metadata
    version_table_name = "alembic_version_airpanda"
    migration_dir = str(HERE / "migrations")
    alembic_file = str(HERE / "alembic.ini")
    supports_table_dropping = True
    revision_heads_map = {"0.1.0": "0001"}  # noqa: RUF012 -- the base class declares it so

    def __init__(self, session: Any) -> None:
        if not (settings.SQL_ALCHEMY_CONN or "").startswith("postgresql"):
            raise ConfigurationError(
                "airpanda's job store needs PostgreSQL: set [database] sql_alchemy_conn = postgresql+psycopg2://..."
            )
        super().__init__(session)  # type: ignore[no-untyped-call]

    def downgrade(self, to_revision: str, from_revision: str | None = None, show_sql_only: bool = False) -> None:
        """To an older revision, ``base`` for none of our tables; with ``show_sql_only`` print the SQL."""
        span = f"{from_revision}:{to_revision}" if from_revision else to_revision
        config = self.get_alembic_config()  # type: ignore[no-untyped-call]
        command.downgrade(config, revision=span, sql=show_sql_only)
