"""The commands for people at a terminal: each is there, and says in one sentence what went wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from airpanda.__main__ import _ROOMS, _USAGE, main
from airpanda.core.commands import names, run_command
from airpanda.core.errors import RequestError


def failing(error: Exception) -> Callable[[argparse.Namespace], int]:
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize("command", _ROOMS)
def test_every_command_explains_itself_by_its_own_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: airpanda {command} ")
    assert f"\n  {command} " in _USAGE


def test_a_command_that_does_not_exist_is_answered_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == main([]) == 2
    assert capsys.readouterr().err.count(_USAGE) == 2
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == _USAGE


@pytest.mark.parametrize("error", [RequestError("the queue is unknown"), OSError("no space left")])
def test_what_went_wrong_is_one_sentence_with_the_commands_name(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser(prog="airpanda thing")
    parser.set_defaults(run=failing(error))
    assert run_command(parser, []) == 1
    assert capsys.readouterr() == ("", f"airpanda thing: {error}\n")


def test_our_own_mistakes_are_no_sentences() -> None:
    parser = argparse.ArgumentParser()
    parser.set_defaults(run=failing(ValueError("x")))
    with pytest.raises(ValueError, match="x"):
        run_command(parser, [])


def test_the_commands_own_code_is_the_programs(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.set_defaults(run=lambda _: 1)
    assert run_command(parser, []) == 1
    with pytest.raises(SystemExit) as caught:
        run_command(parser, ["--nonsense"])
    assert caught.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


def test_names_with_commas() -> None:
    assert names("a, b,c") == ["a", "b", "c"]
    for text in ("", "a,,b", "a,"):
        with pytest.raises(argparse.ArgumentTypeError, match="empty name"):
            names(text)
