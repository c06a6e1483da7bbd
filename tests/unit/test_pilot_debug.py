"""Answers to questions about a running job: bounded, cleaned, and none that is lost or mixed up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from airpanda.core.errors import IdentitySwitchError
from airpanda.glexec.ports import ProcessSeen
from airpanda.pilot import wire
from airpanda.pilot.debug import Answers, process_table

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def answers(show: Callable[[str], str], ready: Callable[[], None] = lambda: None) -> Answers:
    return Answers(show, name="test", ready=ready, now=lambda: NOON)


def told(made: Answers) -> str:
    made.wait(10)
    return made.untold()


def test_an_answer_is_kept_until_it_has_arrived() -> None:
    rung = threading.Event()
    made = answers(lambda what: f"<{what}>", rung.set)
    assert made.untold() == ""
    made.hear("")
    made.wait(1)
    assert not rung.is_set()
    made.hear("ps")
    assert told(made) == made.untold() == "ps at 2026-01-02T12:00:00Z\n<ps>"
    assert rung.is_set()
    made.arrived("something else")
    assert made.untold() != ""
    made.arrived(made.untold())
    assert made.untold() == ""


def test_a_repeated_question_is_answered_once_and_another_one_anew() -> None:
    go, shown = threading.Event(), []

    def show(what: str) -> str:
        shown.append(what)
        assert go.wait(10)
        return what

    made = answers(show)
    for _ in range(5):
        made.hear("ps")
    go.set()
    told(made)
    made.hear("ps")
    assert shown == ["ps"]
    made.hear("ls")
    assert told(made).endswith("\nls")
    assert shown == ["ps", "ls"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (IdentitySwitchError("the site refuses"), "the pilot cannot show it: the site refuses"),
        (ZeroDivisionError("oops"), "the pilot failed to show it: ZeroDivisionError: oops"),
    ],
)
def test_a_failure_is_an_answer(error: Exception, words: str) -> None:
    def show(what: str) -> str:
        raise error

    made = answers(show)
    made.hear("ls")
    assert told(made).endswith(words)


def test_an_answer_is_bounded_and_fit_to_be_shown() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"
    made = answers(lambda what: f"\x1b[2J{key}" + "x" * 10**6)
    made.hear("tail")
    text = told(made)
    assert len(text) == wire.MAX_DEBUG_CHARS
    assert "\x1b" not in text
    assert "MIIE" not in text


def test_a_table_of_processes_is_one_line_each_and_bounded() -> None:
    many = [ProcessSeen(n, 1, "S", 0.5, 100, f"evil\n{n}\tname " + "y" * 1000) for n in range(10_000)]
    lines = process_table(many).splitlines()
    assert len(lines) == 502
    assert lines[-1] == "and 9500 more"
    assert lines[1].split()[:7] == ["0", "1", "S", "0.50", "100", "evil", "0"]
    assert max(map(len, lines)) < 400
    assert process_table([]) == "no process of the payload can be seen"
