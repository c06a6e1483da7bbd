"""What commands at a terminal need to reach the dispatcher: its URL, and a token in a file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import httpx

from airpanda.core.secret import Secret
from airpanda.hooks.trust import trust


def add_dispatcher(command: argparse.ArgumentParser, token_help: str) -> None:
    """Add ``--dispatcher``, ``--token-file`` and ``--ca-file``."""
    default = os.environ.get("AIRPANDA_DISPATCHER", "")
    command.add_argument("--dispatcher", default=default, required=not default, metavar="URL", help="its base URL")
    command.add_argument("--token-file", type=Path, required=True, help=token_help)
    command.add_argument("--ca-file", type=Path, help="CA of the dispatcher's certificate, or a directory of CAs")


def dispatcher_client(arguments: argparse.Namespace) -> httpx.Client:
    """A client with this token, whatever the environment says of proxies and CAs.

    Raises:
        OSError: the token's or the CA's file cannot be read.
    """
    token: Secret[str] = Secret(arguments.token_file.read_text().strip())
    return httpx.Client(
        base_url=arguments.dispatcher.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {token.reveal()}", "Accept": "application/json"},
        verify=trust(arguments.ca_file),
        trust_env=False,
        timeout=30.0,
    )
