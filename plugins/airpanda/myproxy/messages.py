"""The text messages of MyProxy v2: requests and responses, to bytes and back. Pure and strict."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from typing import Optional

from airpanda.core.errors import RequestError
from airpanda.core.secret import Secret
from airpanda.myproxy.errors import MyProxyRequestError, ProtocolViolationError
from airpanda.myproxy.values import MAX_MESSAGE_BYTES, REQUEST_KEYS, Command, CredentialInfo, Policies, Request

VERSION = "MYPROXYv2"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_REPEATABLE = ("VONAME", "VOMSES")


class Outcome(IntEnum):
    """The RESPONSE field."""

    OK = 0
    ERROR = 1
    AUTHORIZATION = 2


@dataclass(frozen=True)
class Response:
    """One response; ``fields`` are the lines besides VERSION and RESPONSE, in order."""

    outcome: Outcome
    fields: tuple[tuple[str, str], ...] = ()

    def all(self, key: str) -> list[str]:
        return [value for name, value in self.fields if name == key]

    def first(self, key: str) -> Optional[str]:
        return next(iter(self.all(key)), None)


@dataclass(frozen=True)
class TrustRoots:
    """Files of a server's CA directory, by name. Names are checked to be plain file names."""

    files: Mapping[str, bytes] = field(default_factory=dict)


def encode_request(request: Request) -> bytes:
    """The message with its final NUL. It holds the passphrase: write it to the socket and nowhere else.

    Raises:
        MyProxyRequestError: over 16 KiB, which is one TLS record.
    """
    data = "".join(f"{key}={value}\n" for key, value in request.texts()).encode() + b"\0"
    if len(data) > MAX_MESSAGE_BYTES:
        raise MyProxyRequestError(f"the MyProxy request has {len(data)} bytes, over {MAX_MESSAGE_BYTES}")
    return data


def decode_request(data: bytes) -> Request:
    """Parse a request without its NUL. A key counts at the start of a line only, and once.

    Raises:
        RequestError: anything that is not exactly a request; unknown keys are ignored.
    """
    fields: dict[str, list[str]] = {}
    for key, value in _lines(data):
        if key in REQUEST_KEYS:
            fields.setdefault(key, []).append(value)
    doubled = [key for key, values in fields.items() if len(values) > 1 and key not in _REPEATABLE]
    if doubled:
        raise RequestError(f"{doubled[0]} stands twice in the request")
    single = {key: values[0] for key, values in fields.items()}
    if single.get("VERSION") != VERSION:
        raise RequestError("the request is not MyProxy version 2")
    missing = [key for key in ("COMMAND", "USERNAME", "PASSPHRASE", "LIFETIME") if key not in single]
    if missing and not (missing == ["PASSPHRASE"] or single.get("COMMAND") == str(int(Command.GET_TRUSTROOTS))):
        raise RequestError(f"the request has no {missing[0]}")
    return Request(
        command=_command(single["COMMAND"]),
        username=single.get("USERNAME", ""),
        passphrase=Secret(single.get("PASSPHRASE", "")),
        new_passphrase=Secret(single["NEW_PHRASE"]) if "NEW_PHRASE" in single else None,
        lifetime_s=_number(single.get("LIFETIME", "0")),
        policies=_policies(single, ""),
        cred_name=single.get("CRED_NAME"),
        description=single.get("CRED_DESC"),
        trusted_certs=single.get("TRUSTED_CERTS") == "1",
        voms=tuple(fields.get("VONAME", ())),
        voms_servers=tuple(fields.get("VOMSES", ())),
    )


def encode_response(response: Response) -> bytes:
    """The message with its final NUL; line breaks inside values become blanks."""
    lines = [("VERSION", VERSION), ("RESPONSE", str(int(response.outcome))), *response.fields]
    text = "".join(f"{key}={value.translate(_FLAT)}\n" for key, value in lines)
    return text.encode("utf-8", "replace") + b"\0"


def decode_response(data: bytes) -> Response:
    """Parse a response without its NUL; unknown lines are kept, lines without ``=`` dropped.

    Raises:
        ProtocolViolationError: no response of version 2.
    """
    fields = _lines(data)
    heads = dict(reversed(fields))
    if heads.get("VERSION") != VERSION:
        raise ProtocolViolationError("the peer's answer is not MyProxy version 2")
    try:
        outcome = Outcome(_number(heads.get("RESPONSE", "")))
    except (ValueError, RequestError):
        raise ProtocolViolationError("the peer's answer has no valid RESPONSE") from None
    return Response(outcome, tuple(item for item in fields if item[0] not in ("VERSION", "RESPONSE")))


def info_fields(infos: Sequence[CredentialInfo]) -> tuple[tuple[str, str], ...]:
    """The lines of INFO's response."""
    fields: list[tuple[str, str]] = []
    for number, info in enumerate(infos):
        prefix = f"CRED_{info.cred_name}_" if number else "CRED_"
        if not number and info.cred_name:
            fields.append(("CRED_NAME", info.cred_name))
        values = (
            ("DESC", info.description),
            ("START_TIME", str(int((info.not_before - _EPOCH).total_seconds()))),
            ("END_TIME", str(int((info.not_after - _EPOCH).total_seconds()))),
            ("OWNER", info.owner),
            ("RETRIEVER", info.policies.retriever),
            ("KEYRETRIEVERS", info.policies.key_retriever),
            ("RETRIEVER_TRUSTED", info.policies.trusted_retriever),
            ("RENEWER", info.policies.renewer),
            ("LOCKMSG", info.locked),
        )
        fields += [(prefix + key, value) for key, value in values if value is not None]
    if len(infos) > 1:
        fields.append(("ADDL_CREDS", ",".join(info.cred_name for info in infos[1:])))
    return tuple(fields)


def infos_of(response: Response) -> tuple[CredentialInfo, ...]:
    """The credentials in INFO's response.

    Raises:
        ProtocolViolationError: a credential without owner or times.
    """
    fields = dict(reversed(response.fields))
    names = [name for name in fields.get("ADDL_CREDS", "").split(",") if name]
    found = [_info(fields, "CRED_", fields.get("CRED_NAME", ""))] if "CRED_OWNER" in fields else []
    return (*found, *(_info(fields, f"CRED_{name}_", name) for name in names))


def trust_roots_of(response: Response) -> TrustRoots:
    """The files in GET_TRUSTROOTS's response.

    Raises:
        ProtocolViolationError: a name with a path in it, or data that is not base64.
    """
    names = [name for name in (response.first("TRUSTED_CERTS") or "").split(",") if name]
    files = {}
    for name in names:
        if "/" in name or name.startswith(".") or not name.isprintable():
            raise ProtocolViolationError("the peer sends a trust root whose name is no plain file name")
        try:
            files[name] = base64.b64decode(response.first(f"FILEDATA_{name}") or "", validate=True)
        except (binascii.Error, ValueError):
            raise ProtocolViolationError(f"the peer sends a trust root that is not base64: {name[:80]}") from None
    return TrustRoots(files)


def trust_root_fields(files: Mapping[str, bytes]) -> tuple[tuple[str, str], ...]:
    """The lines of GET_TRUSTROOTS's response."""
    data = [(f"FILEDATA_{name}", base64.b64encode(content).decode()) for name, content in files.items()]
    return (("TRUSTED_CERTS", ",".join(files)), *data)


_FLAT = dict.fromkeys((*range(32), 127), " ")


def _lines(data: bytes) -> list[tuple[str, str]]:
    text = data.decode("utf-8", "replace")
    pairs = (line.partition("=") for line in text.split("\n"))
    return [(key, value) for key, equals, value in pairs if equals]


def _command(text: str) -> Command:
    try:
        return Command(_number(text))
    except ValueError:
        raise RequestError("UNKNOWN command") from None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise RequestError("a number of the request is none")
    return int(text)


def _policies(fields: Mapping[str, str], prefix: str) -> Policies:
    return Policies(
        retriever=fields.get(f"{prefix}RETRIEVER"),
        renewer=fields.get(f"{prefix}RENEWER"),
        key_retriever=fields.get(f"{prefix}KEYRETRIEVERS"),
        trusted_retriever=fields.get(f"{prefix}RETRIEVER_TRUSTED"),
    )


def _info(fields: Mapping[str, str], prefix: str, name: str) -> CredentialInfo:
    try:
        start, end = (_EPOCH + timedelta(seconds=_number(fields[f"{prefix}{key}_TIME"])) for key in ("START", "END"))
        owner = fields[f"{prefix}OWNER"]
    except (KeyError, RequestError, OverflowError):
        raise ProtocolViolationError("the peer's INFO has a credential without owner or times") from None
    policies = _policies(fields, prefix)
    return CredentialInfo(
        name, owner, start, end, policies, fields.get(f"{prefix}DESC"), fields.get(f"{prefix}LOCKMSG")
    )
