"""Our tables through Airflow's own commands: models and migrations agree, up, down, and with data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from support.postgres import Database, empty_database, postgres

from airpanda.db.models import metadata

__all__ = ["empty_database", "postgres"]
pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
MANAGER = "airpanda.db.manager.AirpandaDBManager"
Airflow = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def airflow(empty_database: Database, tmp_path: Path) -> Airflow:
    """Run ``airflow ...`` on the empty database as a site would."""
    environment = os.environ | {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": empty_database.url("postgresql+psycopg2"),
        "AIRFLOW__DATABASE__EXTERNAL_DB_MANAGERS": MANAGER,
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return run


def rows(database: Database, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(database.url())
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def our_tables(database: Database) -> set[object]:
    return {name for (name,) in rows(database, "SELECT tablename FROM pg_tables WHERE tablename LIKE 'panda%'")}


CATALOGUE = """
SELECT 'table', table_name || '.' || column_name, data_type || coalesce(column_default, '') || is_nullable
  FROM information_schema.columns WHERE table_name LIKE 'panda%'
UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE tablename LIKE 'panda%'
UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid) FROM pg_constraint
  WHERE conrelid::regclass::text LIKE 'panda%'
UNION ALL SELECT 'options', relname, reloptions::text FROM pg_class WHERE relname LIKE 'panda%' AND relkind = 'r'
UNION ALL SELECT 'trigger', tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'function', proname, prosrc FROM pg_proc WHERE proname LIKE 'panda%'
ORDER BY 1, 2, 3
"""


def test_models_and_migrations_make_the_same_database(airflow: Airflow, empty_database: Database) -> None:
    airflow("db", "migrate")
    from_models = rows(empty_database, CATALOGUE)
    assert any(kind == "trigger" for kind, *_ in from_models)

    airflow("db-manager", "downgrade", MANAGER, "--to-revision", "base", "--yes")
    assert our_tables(empty_database) == set()
    assert rows(empty_database, "SELECT FROM pg_proc WHERE proname LIKE 'panda%'") == []

    airflow("db-manager", "migrate", MANAGER, "--to-revision", "0001")
    assert rows(empty_database, CATALOGUE) == from_models

    engine = sa.create_engine(empty_database.url("postgresql+psycopg2"))
    with engine.connect() as connection:
        ours = MigrationContext.configure(
            connection, opts={"include_object": lambda _o, name, kind, *_: kind != "table" or name in metadata.tables}
        )
        assert compare_metadata(ours, metadata) == []
    engine.dispose()


def test_a_repeated_migration_keeps_data_and_a_reset_drops_our_tables(
    airflow: Airflow, empty_database: Database
) -> None:
    airflow("db", "migrate")
    rows(empty_database, "INSERT INTO panda_ban VALUES ('dn', '/O=X/CN=Y', 'a test', 'site')")
    airflow("db", "migrate")
    airflow("db", "check-migrations", "--migration-wait-timeout", "5")
    assert rows(empty_database, "SELECT name FROM panda_ban") == [("/O=X/CN=Y",)]
    airflow("db-manager", "downgrade", MANAGER, "--to-revision", "base", "--yes")
    airflow("db", "migrate")
    assert rows(empty_database, "SELECT name FROM panda_ban") == []
    airflow("db", "reset", "--yes", "--skip-init")
    assert our_tables(empty_database) == set()
