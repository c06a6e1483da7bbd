"""A database that is given to the demonstration: it must answer, and nothing of anybody may be in it."""

from __future__ import annotations

import psycopg2
import pytest
from support.canary import Canaries
from support.postgres import Database, empty_database, postgres  # noqa: F401 - fixtures

from airpanda_demo.errors import DemoError
from airpanda_demo.run import check_database

pytestmark = pytest.mark.integration


def test_an_empty_database_is_taken(empty_database: Database) -> None:  # noqa: F811
    check_database(empty_database.url("postgresql+psycopg2"))


def test_a_database_with_anything_in_it_is_refused(empty_database: Database) -> None:  # noqa: F811
    connection = psycopg2.connect(empty_database.url("postgresql"))
    with connection:
        connection.cursor().execute("CREATE TABLE dag_run (id int)")
    connection.close()
    with pytest.raises(DemoError, match="holds 1 tables already"):
        check_database(empty_database.url("postgresql+psycopg2"))


@pytest.mark.parametrize("rest", ["127.0.0.1:9/d", "127.0.0.1:port/d", "h/d?no_such_option=1", "h:1/d?sslmode=secret"])
def test_what_cannot_be_used_is_one_sentence_without_the_password(rest: str, canaries: Canaries) -> None:
    url = f"postgresql+psycopg2://airpanda:{canaries.plant('password')}@{rest}"
    with pytest.raises(DemoError, match=r"cannot be used .* or unset the variable") as caught:
        check_database(url)
    assert canaries.shown_in(str(caught.value)) == set()
    assert "\n" not in str(caught.value)
