"""What a test needs from the machine: absent is a loud skip for a developer and a failure in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import NoReturn

import pytest

NODE_PYTHON = os.environ.get("AIRPANDA_NODE_PYTHON", "/usr/bin/python3")
"""The Python of a worker node that is no node of ours: Debian's, or any from 3.9 on."""


def absent(reason: str) -> NoReturn:
    """Skip with the reason; with ``CI=true`` fail instead, because CI installs everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def need_program(name: str, package: str) -> str:
    """The path of a program, also looked for in the sbin directories."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        absent(f"NOT TESTED: {name} is missing; install Debian's package {package} (tests/install-system-packages)")
    return path


def need_nodes_python() -> None:
    """It must have ``cryptography``."""
    test = [NODE_PYTHON, "-I", "-c", "import cryptography"]
    if subprocess.run(test, capture_output=True, timeout=60, check=False).returncode != 0:
        absent(f"NOT TESTED: {NODE_PYTHON} has no cryptography (Debian: python3-cryptography)")


def need_root() -> None:
    """The test switches accounts or mounts."""
    if os.geteuid() != 0:
        absent("NOT TESTED: this needs root")
