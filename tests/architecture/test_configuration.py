"""airflow.cfg.example says what the code reads: every option, its unit, its real default; and no option too many."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from airflow.configuration import conf
from airflow.providers.celery.get_provider_info import get_provider_info

from airpanda.core.settings import STATE_TIMEOUTS, Settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = (ROOT / "airflow.cfg.example").read_text()
REQUIRED = {"signing_key", "file_store", "include_dir"}
OPTIONS = {field.name for field in fields(Settings)}
READ_BY = ("plugins", "dags", "include")


@dataclass(frozen=True)
class Block:
    """Options that stand together below the sentences about them."""

    section: str
    says: str
    options: dict[str, str]


def blocks(text: str) -> Iterator[Block]:
    """A commented-out option (``#name = value``, no space) counts like any other."""
    section, says, options = "", [], {}
    for line in [*text.splitlines(), ""]:
        is_sentence = line.startswith("# ") or line == "#"
        if options and (is_sentence or not line.strip() or line.lstrip("#")[:1] == "["):
            yield Block(section, " ".join(says), options)
            says, options = [], {}
        if is_sentence:
            says.append(line[2:])
        elif found := re.fullmatch(r"#?\[(\w+)\]", line):
            section, says = found[1], []
        elif found := re.fullmatch(r"#?(\w+) =\s*(.*)", line):
            options[found[1]] = found[2]


BLOCKS = list(blocks(EXAMPLE))
OURS = [block for block in BLOCKS if block.section == "airpanda"]


def section() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(EXAMPLE)
    return dict(parser["airpanda"])


def test_it_has_every_option_of_ours_and_no_other() -> None:
    assert set(section()) == OPTIONS
    assert {name for block in OURS for name in block.options} == OPTIONS, "an option without a sentence, or unread"


def test_what_is_written_there_is_the_default() -> None:
    required = dict.fromkeys(REQUIRED, "/x")
    written = Settings.from_options(section() | required)
    assert written == Settings.from_options(required)


@pytest.mark.parametrize("block", OURS, ids=lambda block: ",".join(block.options))
def test_every_option_of_ours_has_its_default_in_words(block: Block) -> None:
    if set(block.options) <= REQUIRED:
        assert block.says.endswith("Required.")
        return
    found = re.search(r"Defaults?:? (.*)\.$", block.says)
    assert found, f"no default is said of {', '.join(block.options)}"
    if "state_timeouts" in block.options:
        said = dict(word.split("=") for word in found[1].split(", "))
        assert said == {state: f"{limit.total_seconds():.0f}" for state, limit in STATE_TIMEOUTS.items()}
    elif found[1].startswith("empty"):
        assert set(block.options.values()) == {""}
    else:
        assert re.findall(r"\d+", found[1]) == list(block.options.values())


@pytest.mark.parametrize("block", OURS, ids=lambda block: ",".join(block.options))
def test_every_number_of_ours_has_its_unit(block: Block) -> None:
    if any(value.isdigit() for value in block.options.values()):
        assert re.search(r"\b(seconds|bytes|requests a second)\b", block.says, re.IGNORECASE)


def test_code_reads_no_option_that_is_not_there() -> None:
    assert asked_of_airflow() <= OPTIONS


def test_every_option_is_read_by_some_code() -> None:
    read = asked_of_airflow() | {
        node.attr for tree in trees("plugins") for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    assert OPTIONS - read == set()


def test_options_of_airflow_exist_in_this_version() -> None:
    known: dict[str, Any] = {name.lower(): part for name, part in conf.configuration_description.items()}
    known |= get_provider_info()["config"]
    wrong = [
        f"[{block.section}] {name}"
        for block in BLOCKS
        if block.section != "airpanda"
        for name in block.options
        if name not in {option.lower() for option in known.get(block.section, {"options": {}})["options"]}
    ]
    assert wrong == []


def trees(*folders: str) -> Iterator[ast.AST]:
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            yield ast.parse(path.read_text())


def asked_of_airflow() -> set[str]:
    """``name`` of every ``conf.get…("airpanda", name, …)``."""
    return {
        call.args[1].value
        for tree in trees(*READ_BY)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and len(call.args) > 1
        and isinstance(call.args[0], ast.Constant)
        and call.args[0].value == "airpanda"
        and isinstance(call.args[1], ast.Constant)
        and isinstance(call.args[1].value, str)
    }
