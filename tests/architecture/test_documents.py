"""What the documents say is backed by tests, and the tests that they name exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLEAR_TABLE = ROOT / "docs" / "operations.md"
HEADING = "## Clearing a task in the web UI"
HOME = "test_airflow_clear.py"
"""Where a row's test is unless the row names another file."""


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = text.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def references(cell: str) -> list[tuple[str, str]]:
    """(file, pattern) of each test that a cell names; in a pattern ``…`` stands for any text.

    Raises:
        ValueError: the cell names no test, or says something that is not the name of one.
    """
    found, file = [], HOME
    for word in re.split(r"[;:] ", cell):
        quoted = re.fullmatch(r"`([a-z0-9_.…]+)`", word)
        if quoted is None:
            raise ValueError(f"{word!r} is not the name of a test")
        if quoted[1].endswith(".py"):
            file = quoted[1]
        else:
            found.append((file, quoted[1]))
    if not found or file not in (HOME, *(name for name, _ in found)):
        raise ValueError(f"{cell!r} names no test of {file}")
    return found


def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The tests that a file has; none where there is no such file."""
    body = ast.parse(path.read_text()).body if path.exists() else []
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node for node in functions if node.name.startswith("test_")]


def meant_by(file: str, pattern: str) -> Iterator[str]:
    """The tests of a file of tests/integration that a pattern means and that nothing skips."""
    wanted = re.compile(".*".join(map(re.escape, pattern.split("…"))))
    for test in functions_of(ROOT / "tests" / "integration" / file):
        marks = " ".join(ast.unparse(mark) for mark in test.decorator_list)
        if wanted.fullmatch(test.name) and "skip" not in marks and "xfail" not in marks:
            yield test.name


def test_each_row_of_the_clear_table_names_tests_that_exist() -> None:
    table = rows(CLEAR_TABLE.read_text(), HEADING)
    assert len(table) >= 14
    for does, happens, cell in table:
        assert does, cell
        assert happens, does
        for file, pattern in references(cell):
            assert len(list(meant_by(file, pattern))) == 1, f"{does}: {pattern} is not one test of {file}"


@pytest.mark.parametrize(
    "cell",
    ["", "see the tests", "`test_airflow_races.py`", "`test_a`; `test_airflow_races.py`", "`test_a`, by hand", "``"],
)
def test_a_row_without_a_test_is_seen(cell: str) -> None:
    with pytest.raises(ValueError, match=r"is not the name of a test|names no test"):
        references(cell)


def test_a_row_whose_test_is_gone_is_seen() -> None:
    assert list(meant_by(HOME, "…that_was_renamed")) == []
    assert list(meant_by("test_airflow_gone.py", "…")) == []
    assert len(list(meant_by(HOME, "test_clearing…"))) > 1, "one name is to mean one test"


def test_files_of_tests_that_documents_name_exist() -> None:
    there = {path.name for path in (ROOT / "tests").rglob("*.py")}
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert set(re.findall(r"\btest_\w+\.py\b", document.read_text())) <= there, document.name
