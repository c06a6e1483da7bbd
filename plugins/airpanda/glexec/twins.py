"""Twins of the programs that came with gLExec and that pilot frameworks call: wrapenv, unwrapenv, mkgltempdir.

Source: manual pages glexec_wrapenv(1), glexec_unwrapenv(1), mkgltempdir(1) of gLExec 0.9.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from airpanda.core.errors import AirpandaError, IdentitySwitchError, RequestError
from airpanda.glexec import contract
from airpanda.glexec.through_glexec import GlexecSwitcher, is_sandbox
from airpanda.glexec.wrapped import decode_environment, encode_environment


def wrapenv(argv: Sequence[str]) -> int:
    """``export GLEXEC_ENV=$(glexec_wrapenv [--exclude=A,B])``."""
    parser = argparse.ArgumentParser(prog="glexec_wrapenv", description=wrapenv.__doc__)
    parser.add_argument("--exclude", default="", help="names, separated by commas")
    excluded = parser.parse_args(argv).exclude.split(",")
    print(encode_environment(os.environ, exclude=[*excluded, contract.ENVIRONMENT]))
    return 0


def unwrapenv(argv: Sequence[str]) -> int:
    """``glexec glexec_unwrapenv -- COMMAND [ARGUMENT...]``: the command with what ``GLEXEC_ENV`` may restore."""
    command = list(argv[1:] if argv[:1] == ["--"] else argv)
    if not command:
        return _say("usage: glexec_unwrapenv -- COMMAND [ARGUMENT...]", contract.CLIENT_ERROR)
    environ = dict(os.environ)
    try:
        environ.update(decode_environment(environ.pop(contract.ENVIRONMENT, "") or _EMPTY))
        os.execvpe(command[0], command, environ)  # noqa: S606
    except RequestError as error:
        return _say(str(error), contract.CLIENT_ERROR)
    except OSError as error:
        return _say(f"{command[0]}: {error.strerror}", contract.EXEC_FAILED)


def mkgltempdir(argv: Sequence[str]) -> int:
    """Make (or with -r remove) a directory of the target's inside one of the caller's, and print its path."""
    arguments = _mkgltempdir_parser().parse_args(argv)
    proxy, glexec = os.environ.get(contract.CLIENT_CERT), contract.find_glexec(os.environ)
    if not proxy or glexec is None:
        missing = "glexec is not installed" if proxy else f"{contract.CLIENT_CERT} is not set"
        return _say(missing, contract.CLIENT_ERROR)
    switcher = GlexecSwitcher(Path(glexec))
    try:
        if arguments.remove:
            return _remove(switcher, arguments.directory, Path(proxy), force=arguments.force)
        parent = arguments.directory or Path(os.environ.get("TMPDIR", "."))
        made = switcher.make_sandbox(parent.resolve(), Path(proxy))
        made.parent.chmod(arguments.outer_mode)
        print(made)
    except (AirpandaError, OSError) as error:
        code = error.exit_code if isinstance(error, IdentitySwitchError) else None
        return _say(str(error), code or contract.CLIENT_ERROR)
    return 0


def _mkgltempdir_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mkgltempdir", description=mkgltempdir.__doc__)
    parser.add_argument("-t", dest="inner_mode", type=_private, default=0o700, help="mode of the target's: 0700 only")
    parser.add_argument("-m", dest="outer_mode", type=_passable, default=0o755, help="mode of the caller's")
    parser.add_argument("-r", dest="remove", action="store_true")
    parser.add_argument("-f", dest="force", action="store_true", help="with -r: no error if it is gone")
    parser.add_argument("directory", nargs="?", type=Path)
    return parser


def _private(text: str) -> int:
    if int(text, 8) != 0o700:
        raise argparse.ArgumentTypeError("a payload's directory is private to its account")
    return 0o700


def _passable(text: str) -> int:
    mode = int(text, 8)
    if mode & 0o022 or not mode & 0o001 or mode > 0o777:
        raise argparse.ArgumentTypeError("must let others pass and not write")
    return mode


def _remove(switcher: GlexecSwitcher, directory: Optional[Path], proxy: Path, *, force: bool) -> int:
    if directory is None or not directory.exists():
        return 0 if force else _say("there is no such directory", contract.CLIENT_ERROR)
    if not is_sandbox(directory.resolve()):  # what lies beside a sandbox goes with it
        return _say(f"{directory} was not made by mkgltempdir", contract.CLIENT_ERROR)
    switcher.remove(directory.resolve(), proxy)
    return 0


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


_EMPTY = encode_environment({})
