"""``python -m airpanda glexec install|check|uninstall``: what a site admin types."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from airpanda.core.commands import run_command
from airpanda.core.errors import ConfigurationError
from airpanda.glexec.check import check
from airpanda.glexec.install import DEFAULT_SOCKET, Installed, install, uninstall
from airpanda.glexec.sudo_rule import DEFAULT_RULE

_GRID_SECURITY = Path("/etc/grid-security")
_PREFIX = Path("/usr/local/libexec/airpanda-glexec")


def main(argv: Sequence[str]) -> int:
    """Exit codes as of :func:`run_command`."""
    return run_command(_parser(), argv)


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
    add.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="a line of the configuration")
    add.add_argument(
        "--sudoers",
        type=Path,
        nargs="?",
        const=DEFAULT_RULE,
        metavar="FILE",
        help=f"put the sudo rule in place ({DEFAULT_RULE})",
    )
    add.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, write nothing")
    add.set_defaults(run=_install)
    look = commands.add_parser("check", help="say how one proxy maps, step by step; needs root")
    look.add_argument("--prefix", type=Path, default=_PREFIX)
    look.add_argument("--caller", required=True, metavar="ACCOUNT")
    look.add_argument("proxy", type=Path)
    look.set_defaults(run=_check)
    remove = commands.add_parser("uninstall", help="remove what install has written; configuration and log stay")
    remove.add_argument("--prefix", type=Path, default=_PREFIX)
    remove.set_defaults(run=_uninstall)
    return parser


def _install(arguments: argparse.Namespace) -> int:
    config = Installed(arguments.prefix, arguments.socket).config
    kept = config.exists()
    installed = install(
        arguments.prefix,
        python=arguments.python,
        callers=arguments.caller,
        ca_dir=arguments.ca_dir,
        mapfile=arguments.mapfile,
        log_file=arguments.log_file,
        socket=arguments.socket,
        options=_options(arguments.set),
        sudoers=arguments.sudoers,
        dry_run=arguments.dry_run,
    )
    if arguments.dry_run:
        print(_would(installed, kept, arguments.sudoers))
        return 0
    units, rule = f"{shlex.quote(str(installed.prefix / 'share'))}/airpanda-glexec.*", arguments.sudoers
    sudo = f"its rule is {rule}" if rule else "install --sudoers puts its rule in place"
    prefix = shlex.quote(str(installed.prefix))
    outside = f"Outside of it only {rule} was written" if rule else "Nothing outside of it was changed"
    print(f"""Installed in {installed.prefix}. {outside}. What is left to do:
 configuration   {config}{" (it was there already and was kept as it is)" if kept else ""}
 with systemd    cp {units} /etc/systemd/system && systemctl enable --now airpanda-glexec.socket
 without         start {installed.launcherd} as root at boot
 or with sudo    {sudo}
 pilots          OSG_GLEXEC_LOCATION={installed.glexec} (by sudo: {installed.glexec_sudo})
 try             python -m airpanda glexec check --prefix {prefix} --caller {arguments.caller[0]} PROXY""")
    return 0


def _options(lines: Sequence[str]) -> dict[str, str]:
    wrong = [line for line in lines if "=" not in line]
    if wrong:
        raise ConfigurationError(f"--set {wrong[0]!r} is not OPTION=VALUE")
    return {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}


def _would(installed: Installed, kept: bool, rule: Optional[Path]) -> str:
    lines = [f"Everything is as it must be. Nothing was written. In {installed.prefix} there would be:"]
    lines += [f" {name:15} written anew" for name in ("lib", "sbin", "share")]
    lines.append(f" {'etc/glexec.conf':15} {'kept as it is' if kept else 'written'}")
    lines.append(f"and outside of it: {f'the sudo rule {rule}' if rule else 'nothing'}.")
    return "\n".join(lines)


def _check(arguments: argparse.Namespace) -> int:
    config = Installed(arguments.prefix, DEFAULT_SOCKET).config
    good = True
    for step in check(config, caller=arguments.caller, proxy=arguments.proxy):
        code = f" (glexec would return {step.code})" if step.code else ""
        print(f"{'ok    ' if step.good else 'WRONG '} {step.what}{code}")
        good = good and step.good
    return 0 if good else 1


def _uninstall(arguments: argparse.Namespace) -> int:
    found, stay = uninstall(arguments.prefix)
    if not found:
        print(f"Nothing is installed in {arguments.prefix}.")
        return 0
    print(f"Removed the launcher; {arguments.prefix}/etc and the log were left.")
    for path in stay:
        print(f"Left too, because somebody has changed it since: {path}")
    return 0
