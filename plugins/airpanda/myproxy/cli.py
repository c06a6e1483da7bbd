"""``python -m airpanda proxy``: what payload owners do from a terminal, with the standard library and cryptography.

The long-lived key is read here, signs here, and stays here: MyProxy gets a proxy made from it, encrypted under a
random passphrase; the dispatcher gets that passphrase and sees, by mutual TLS, that the key is at hand.
"""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Optional

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.commands import names, run_command
from airpanda.core.errors import AirpandaError, RequestError
from airpanda.core.secret import Secret
from airpanda.myproxy import staging
from airpanda.myproxy.client import MyProxyClient
from airpanda.myproxy.errors import CredentialMissingError
from airpanda.myproxy.owner import OwnerApi
from airpanda.myproxy.values import DEFAULT_PORT
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.files import read_private
from airpanda.x509.preflight import verified_fqans

MAX_PASSPHRASE_BYTES = 4096


def main(argv: Sequence[str]) -> int:
    """Exit codes as of :func:`run_command`."""
    return run_command(_parser(), argv)


def _stage(arguments: argparse.Namespace) -> int:
    own = _credential(arguments)
    lifetime = timedelta(hours=arguments.hours)
    fqans = verified_fqans(own, ca_dir=arguments.ca_dir, vomsdir=arguments.vomsdir, now=utcnow())
    ends = min(own.not_after, utcnow() + lifetime)
    print(f"{own.identity}: a proxy until {to_wire(ends)}, retrievable only by {arguments.retriever_dn}")
    if arguments.dry_run:
        print("dry run: nothing was sent")
        return 0
    client, api = _myproxy(arguments.myproxy, own, arguments), _api(own, arguments)
    staged = staging.stage(client, own, retriever_dn=arguments.retriever_dn, lifetime=lifetime)
    registration = {
        "owner": arguments.owner,
        "owner_dn": own.identity,
        "fqans": fqans,
        "server": staged.server,
        "username": staged.username,
        "cred_name": staged.cred_name,
        "passphrase": staged.passphrase.reveal(),
        "retriever_dn": arguments.retriever_dn,
        "expires_at": to_wire(staged.expires_at),
        "scope": arguments.scope,
        "origin": "terminal",
    }
    try:
        view = api.call("POST", "creds", registration)
    except AirpandaError:
        # Nobody will ever know its passphrase: what was staged must not stay behind.
        staging.unstage(client, staged.username, staged.cred_name)
        raise
    number = view["credential_id"]
    print(f"staged as credential {number} at {view['server']} until {view['expires_at']}")
    if arguments.consent is None:
        print(f"no client may use it yet: airpanda proxy consent CLIENT --credential {number}")
        return 0
    return _give(api, arguments.consent, arguments.queues, staged.expires_at, number)


def _info(arguments: argparse.Namespace) -> int:
    own = _credential(arguments)
    api = _api(own, arguments)
    print(own.identity)
    for view in api.call("GET", "creds"):
        print(
            f"credential {view['credential_id']} at {view['server']} until {view['expires_at']}, scope {view['scope']}"
        )
    for given in api.call("GET", "consents"):
        what = f"credential {given['credential_id']}" if given["credential_id"] else "all credentials"
        print(f"consent: {what} to {given['client']} on {','.join(given['queues'])} until {given['until']}")
    for row in api.call("GET", f"audit?limit={arguments.uses}") if arguments.uses else ():
        job = f" job {row['panda_id']}.{row['attempt_nr']} on {row['node']}" if row["panda_id"] else ""
        print(f"{row['at']} {row['action']} by {row['actor']}{job} {row['detail']}".rstrip())
    if arguments.myproxy:
        for held in _myproxy(arguments.myproxy, own, arguments).info(own.identity):
            print(f"in MyProxy: {held.cred_name or '(unnamed)'} until {to_wire(held.not_after)}")
    return 0


def _consent(arguments: argparse.Namespace) -> int:
    until = utcnow() + timedelta(days=arguments.days)
    api = _api(_credential(arguments), arguments)
    return _give(api, arguments.client, arguments.queues, until, arguments.credential)


def _give(api: OwnerApi, client: str, queues: list[str], until: datetime, credential: Optional[int]) -> int:
    grant = {"client": client, "queues": queues, "until": to_wire(until), "credential_id": credential}
    given = api.call("POST", "consents", grant)
    what = f"credential {credential}" if credential is not None else "all your credentials"
    print(f"client {client} may use {what} on queues {','.join(queues)} until {given['until']}")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    api = _api(_credential(arguments), arguments)
    if arguments.client is None and not arguments.consents:
        if arguments.credential is None:
            raise RequestError("say what to revoke: --credential, --client, or --consents for all of them")
        view = api.call("POST", f"creds/{arguments.credential}/revoke")
        print(f"credential {arguments.credential} is {view['state']}: no pilot gets it any more")
        return 0
    ended = api.call("POST", "consents/end", {"client": arguments.client, "credential_id": arguments.credential})
    print(f"{len(ended)} consents taken back; nothing is dispatched on them any more")
    return 0


def _destroy(arguments: argparse.Namespace) -> int:
    own = _credential(arguments)
    api = _api(own, arguments)
    view = api.call("POST", f"creds/{arguments.credential}/revoke")
    if view["state"] == "destroyed":
        print(f"credential {arguments.credential} is destroyed already")
        return 0
    try:
        staging.unstage(_myproxy(view["server"], own, arguments), view["username"], view["cred_name"])
    except CredentialMissingError:
        print("it is no longer in MyProxy")
    api.call("POST", f"creds/{arguments.credential}/destroyed")
    print(f"credential {arguments.credential} is destroyed")
    return 0


def _credential(arguments: argparse.Namespace) -> ProxyCredential:
    """The owner's own: a proxy file, or certificate and key. The passphrase comes from a descriptor or the terminal."""
    if arguments.proxy is not None:
        return ProxyCredential.load(arguments.proxy)
    passphrase = None
    if arguments.passphrase_fd is not None:
        passphrase = _from_descriptor(arguments.passphrase_fd)
    elif b"ENCRYPTED" in read_private(arguments.key):
        passphrase = Secret(getpass.getpass(f"Passphrase of {arguments.key}: "))
    return ProxyCredential.from_files(arguments.cert, arguments.key, passphrase)


def _from_descriptor(descriptor: int) -> Secret[str]:
    raw = b""
    while b"\n" not in raw and len(raw) <= MAX_PASSPHRASE_BYTES:
        part = os.read(descriptor, MAX_PASSPHRASE_BYTES)
        if not part:
            break
        raw += part
    try:
        return Secret(raw.split(b"\n", 1)[0].decode())
    except UnicodeDecodeError:
        raise RequestError("the passphrase is not UTF-8") from None


def _myproxy(address: str, own: ProxyCredential, arguments: argparse.Namespace) -> MyProxyClient:
    host, colon, port = address.rpartition(":")
    if not colon:
        host, port = address, str(DEFAULT_PORT)
    if not host or not port.isdigit():
        raise RequestError("the MyProxy server must be HOST or HOST:PORT")
    return MyProxyClient(host.strip("[]"), int(port), ca_dir=arguments.ca_dir, credential=own)


def _api(own: ProxyCredential, arguments: argparse.Namespace) -> OwnerApi:
    if not arguments.dispatcher:
        raise RequestError("name the dispatcher's gateway: --dispatcher https://HOST:PORT, or AIRPANDA_DISPATCHER")
    return OwnerApi(arguments.dispatcher, credential=own, ca_dir=arguments.ca_dir)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airpanda proxy", description="Your proxies in MyProxy, and their use.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    stage = _command(commands, "stage", _stage, "put a proxy into MyProxy for pilots, and register it")
    stage.add_argument("--myproxy", required=True, metavar="HOST[:PORT]", help="the MyProxy server")
    stage.add_argument("--retriever-dn", required=True, help="the pilots' DN, which your site tells")
    stage.add_argument("--owner", required=True, help="the short name under which clients act for you")
    stage.add_argument("--hours", type=_positive, default=24.0, help="how long it lasts (default 24)")
    stage.add_argument("--scope", choices=["job", "task", "user"], default="user", help="what it serves (default user)")
    stage.add_argument("--vomsdir", type=Path, help="verify VOMS attributes by this directory and register them")
    stage.add_argument("--consent", metavar="CLIENT", help="let this client use it, until it ends")
    stage.add_argument("--queues", type=names, default=["*"], help="on these queues only; names with commas")
    stage.add_argument("--dry-run", action="store_true", help="check everything at hand, send nothing")
    info = _command(commands, "info", _info, "show your staged credentials and consents")
    info.add_argument("--uses", type=int, default=0, metavar="N", help="and the last N lines of their log")
    info.add_argument("--myproxy", metavar="HOST[:PORT]", help="and what this server holds")
    consent = _command(commands, "consent", _consent, "let a client use your credentials")
    consent.add_argument("client", help="the name in its token")
    consent.add_argument("--queues", type=names, default=["*"], help="on these queues only; names with commas")
    consent.add_argument("--days", type=_positive, default=30.0, help="for how long (default 30)")
    consent.add_argument("--credential", type=int, help="this one only")
    revoke = _command(commands, "revoke", _revoke, "take a credential, or consents, out of use at once")
    revoke.add_argument("--credential", type=int, help="this credential, or consents to it")
    revoke.add_argument("--client", help="the consents to this client")
    revoke.add_argument("--consents", action="store_true", help="the consents to all clients")
    destroy = _command(commands, "destroy", _destroy, "remove a credential from MyProxy; nobody gets it any more")
    destroy.add_argument("credential", type=int)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    home = Path("~/.globus").expanduser()
    parser.add_argument("--cert", type=Path, default=home / "usercert.pem", help="certificate (default %(default)s)")
    parser.add_argument("--key", type=Path, default=home / "userkey.pem", help="its key (default %(default)s)")
    parser.add_argument("--proxy", type=Path, help="instead of both: a proxy made from them directly")
    parser.add_argument("--passphrase-fd", type=int, metavar="N", help="read the key's passphrase from descriptor N")
    ca_dir = Path(os.environ.get("X509_CERT_DIR", "/etc/grid-security/certificates"))
    parser.add_argument("--ca-dir", type=Path, default=ca_dir, help="CAs to trust (default %(default)s)")
    dispatcher = os.environ.get("AIRPANDA_DISPATCHER", "")
    parser.add_argument("--dispatcher", default=dispatcher, metavar="URL", help="https://HOST:PORT of the gateway")
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100_000:
        raise argparse.ArgumentTypeError("more than 0 and at most 100000")
    return value
