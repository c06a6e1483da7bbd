"""``python -m airpanda glexec install|check|uninstall``: what a site admin types."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from airpanda.core.errors import AirpandaError
from airpanda.glexec.check import check
from airpanda.glexec.install import DEFAULT_SOCKET, Installed, install, uninstall

_GRID_SECURITY = Path("/etc/grid-security")
_PREFIX = Path("/usr/local/libexec/airpanda-glexec")


def main(argv: Sequence[str]) -> int:
    """Exit code 0 where all is well, 1 where something is wrong, 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except AirpandaError as error:
        print(f"airpanda glexec: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airpanda glexec", description="The launcher of a worker node.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = commands.add_parser("install", help="write the launcher and its configuration; needs root")
    add.add_argument("--prefix", type=Path, default=_PREFIX)
    add.add_argument("--caller", action="append", required=True, metavar="ACCOUNT", help="who may use it; repeatable")
    add.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter with cryptography")
    add.add_argument("--ca-dir", type=Path, default=_GRID_SECURITY / "certificates")
    add.add_argument("--mapfile", type=Path, default=_GRID_SECURITY / "grid-mapfile")
    add.add_argument("--log-file", type=Path, default=Path("/var/log/airpanda-glexec.jsonl"))
    add.add_argument("--socket", type=Path, default=DEFAULT_SOCKET)
    add.set_defaults(run=_install)
    look = commands.add_parser("check", help="say how one proxy maps, step by step; needs root")
    look.add_argument("--prefix", type=Path, default=_PREFIX)
    look.add_argument("--caller", required=True, metavar="ACCOUNT")
    look.add_argument("proxy", type=Path)
    look.set_defaults(run=_check)
    remove = commands.add_parser("uninstall", help="remove the launcher; configuration and log stay")
    remove.add_argument("--prefix", type=Path, default=_PREFIX)
    remove.set_defaults(run=_uninstall)
    return parser


def _install(arguments: argparse.Namespace) -> int:
    installed = install(
        arguments.prefix,
        python=arguments.python,
        callers=arguments.caller,
        ca_dir=arguments.ca_dir,
        mapfile=arguments.mapfile,
        log_file=arguments.log_file,
        socket=arguments.socket,
    )
    share = installed.prefix / "share"
    print(f"""Installed in {installed.prefix}. Nothing outside of it was changed. What is left to do:
 configuration   {installed.config}
 with systemd    cp {share}/airpanda-glexec.* /etc/systemd/system && systemctl enable --now airpanda-glexec.socket
 without         start {installed.launcherd} as root at boot
 or with sudo    cp {share}/sudoers /etc/sudoers.d/airpanda-glexec
 pilots          OSG_GLEXEC_LOCATION={installed.glexec} (by sudo: {installed.glexec_sudo})
 try             python -m airpanda glexec check --prefix {installed.prefix} --caller {arguments.caller[0]} PROXY""")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    config = Installed(arguments.prefix, DEFAULT_SOCKET).config
    good = True
    for step in check(config, caller=arguments.caller, proxy=arguments.proxy):
        code = f" (glexec would return {step.code})" if step.code else ""
        print(f"{'ok    ' if step.good else 'WRONG '} {step.what}{code}")
        good = good and step.good
    return 0 if good else 1


def _uninstall(arguments: argparse.Namespace) -> int:
    uninstall(arguments.prefix)
    print(f"Removed the launcher; {arguments.prefix}/etc and the log were left.")
    return 0
