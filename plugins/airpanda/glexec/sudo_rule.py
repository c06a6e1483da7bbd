"""The sudo rule of the launcher in sudo's own directory: checked by ``visudo`` before and after it is put there."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from airpanda.core.errors import ConfigurationError
from airpanda.glexec.trusted import check_trusted
from airpanda.glexec.written import put

DEFAULT_RULE = Path("/etc/sudoers.d/airpanda-glexec")
_MODE = 0o440
_ROOTS_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_CALLER = re.compile(r"%?[A-Za-z_][A-Za-z0-9_.-]*\$?")
# What sudoers(5) wants escaped in a command's path; a comma or a colon would begin another command.
_SPECIAL = re.compile(r"([\\\s,:=!*?\[\]#\"'()])")
_TEXT = """# The launcher started by sudo instead of by its socket; written by airpanda glexec install.
# Pilots then have OSG_GLEXEC_LOCATION={glexec_sudo}
Defaults!{launcher} env_keep += "GLEXEC_*"
{callers} ALL=(root) NOPASSWD: {launcher}
"""


def rule_text(launcher: Path, glexec_sudo: Path, callers: Sequence[str]) -> str:
    """The rule for these callers and nothing else.

    Raises:
        ConfigurationError: a caller's or the launcher's name means something else in sudo's language.
    """
    for caller in callers:
        if not _CALLER.fullmatch(caller) or caller == "ALL":
            raise ConfigurationError(f"{caller!r} is no name of an account or %group that a sudo rule can hold")
    if "\n" in str(launcher) or not callers:
        raise ConfigurationError("a sudo rule needs a caller, and a launcher whose path is one line")
    command = _SPECIAL.sub(r"\\\1", str(launcher))
    return _TEXT.format(launcher=command, glexec_sudo=glexec_sudo, callers=", ".join(callers))


def visudo() -> Optional[str]:
    """sudo's checker, or None where sudo is not installed."""
    return shutil.which("visudo", path=_ROOTS_PATH)


def check_rule(text: str) -> None:
    """Ask visudo, where there is one, whether this text is a rule.

    Raises:
        ConfigurationError: it is not.
    """
    program = visudo()
    if program is None:
        return
    checked = _ask(program, "-cf", "-", given=text)
    if checked.returncode != 0:
        raise ConfigurationError(f"visudo refuses the sudo rule: {_reason(checked)}")


def check_place(path: Path) -> None:
    """Whether a rule can be put here.

    Raises:
        ConfigurationError: there is no sudo, sudo would not read a file of this name, or its directory is unsafe.
    """
    if visudo() is None:
        raise ConfigurationError("sudo is not installed on this machine, so there is no place for its rule")
    if "." in path.name or path.name.endswith("~"):
        raise ConfigurationError(f"sudo reads no file with a dot or a final ~ in its name, such as {path.name}")
    check_trusted(path.parent)


def put_rule(path: Path, text: str) -> None:
    """Put the rule in its place, root's and 0440; the same rule is left alone.

    Raises:
        ConfigurationError: as ``check_rule`` and ``check_place``, or sudo's whole configuration would not be valid, or
            would not include the rule. What was there before is there again then.
    """
    check_place(path)
    check_rule(text)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    if before != text or not _is_private(path):
        put(path, text, _MODE)
    program = visudo()
    checked = _ask(program or "visudo", "-c")
    if checked.returncode == 0 and f"{path}: parsed OK" in checked.stdout:
        return
    if before is None:
        path.unlink()
    elif before != text:
        put(path, before, _MODE)
    reason = _reason(checked) if checked.returncode else "/etc/sudoers does not include it (@includedir)"
    raise ConfigurationError(f"with {path} sudo's configuration would not work, so it was not put there: {reason}")


def _is_private(path: Path) -> bool:
    status = os.lstat(path)
    return stat.S_ISREG(status.st_mode) and status.st_uid == 0 and stat.S_IMODE(status.st_mode) == _MODE


def _ask(program: str, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environ = {"PATH": _ROOTS_PATH, "LC_ALL": "C.UTF-8"}
    return subprocess.run([program, *words], input=given, capture_output=True, text=True, timeout=30, env=environ)


def _reason(checked: subprocess.CompletedProcess[str]) -> str:
    return " ".join((checked.stderr or checked.stdout).split()) or "no reason given"
