"""``https:`` and ``davs:`` URLs, with WebDAV where the server has it."""

from __future__ import annotations

import contextlib
import os
import re
from http.client import HTTPResponse
from typing import Any, BinaryIO, Optional

from airpanda.pilot.carrier.limit import allow, allow_s
from airpanda.pilot.carrier.local import CHUNK, check_size, fresh_file, give_name, open_output, write_all
from airpanda.pilot.carrier.outcome import BROKEN, MISMATCH, MISSING, NOT_A_FILE, PROTOCOL, REFUSED, Digest, Trouble
from airpanda.pilot.carrier.web import Web, checksums_in, https, whole_number

_WANTED = {"Want-Digest": "adler32,sha-256", "Want-Repr-Digest": "sha-256=1"}
_CLEARING_S = 30.0
_KEPT = "something is there already that is no file, or is not to be replaced"
_MULTI_STATUS, _PRECONDITION_FAILED = 207, 412
_COLLECTION = re.compile(rb"<(?:[A-Za-z0-9._-]+:)?collection[\s/>]", re.IGNORECASE)


class _NoMoveError(Exception):
    """The server said that it had WebDAV, and cannot move a file."""


def fetch(transfer: dict[str, Any], max_bytes: int, ca_dir: str) -> Digest:
    """Get the file into the sandbox, under its name once it is whole and what was declared.

    Raises:
        Trouble: nothing has arrived.
    """
    web = _web(transfer, ca_dir)
    # XRootD 5.5 answers 500 where it cannot tell the checksum of a file because there is none: ask for that later.
    with web.ask("GET", transfer["url"], {}) as response, fresh_file(transfer["temporary"]) as target:
        digest = _receive(response, transfer, max_bytes, target)
        digest.demand(transfer, "the declared one")
        told = checksums_in(response.headers)
        digest.demand(told, "the server's")
        if not (told or transfer["adler32"] or transfer["sha256"]):
            _compare_with_head(web, transfer["url"], digest)
        give_name(transfer["temporary"], transfer["lfn"])
    return digest


def send(transfer: dict[str, Any], max_bytes: int, ca_dir: str) -> Digest:
    """Put an output to its place and compare what the server then has.

    With WebDAV it has another name until it is whole and right; without, what is not right is removed again.

    Raises:
        Trouble: it is not there; or, without WebDAV and with a server that fails twice, it may be there in part.
        SystemExit: told to end; without WebDAV, what the server has of it stays.
    """
    web, url = _web(transfer, ca_dir), transfer["url"]
    with open_output(transfer["lfn"]) as source:
        size = os.fstat(source.fileno()).st_size
        check_size(size, max_bytes)
        allow(size)
        if _has_webdav(web, url):
            try:
                return _by_move(web, url, _beside(url, transfer["temporary"]), source, transfer["lfn"])
            except _NoMoveError:
                pass
        if not https(url).query and _is_collection(web, url):
            raise Trouble(NOT_A_FILE, _KEPT)
        return _put(web, url, source, transfer["lfn"], ours=False)


def _web(transfer: dict[str, Any], ca_dir: str) -> Web:
    return Web(ca_dir, os.environ.get("X509_USER_PROXY", ""), transfer["url"])


def _receive(response: HTTPResponse, transfer: dict[str, Any], max_bytes: int, target: BinaryIO) -> Digest:
    """The body, bounded, and known to be whole."""
    if response.status != 200 or response.headers.get("Content-Encoding", "identity") != "identity":
        raise Trouble(PROTOCOL, f"an answer of status {response.status} in an encoding that was not asked for")
    announced = _length(response)
    if announced is not None:
        check_size(announced, max_bytes)
        if transfer["size"] not in (None, announced):
            raise Trouble(MISMATCH, f"its size is {announced}, the declared one is {transfer['size']}")
    allow(announced)
    digest = _digest_of(response, max_bytes, target)
    if announced is None and not response.chunked and not _is_known(transfer, response):
        raise Trouble(BROKEN, "the server does not say how long the file is, and nobody else does")
    return digest


def _digest_of(response: HTTPResponse, max_bytes: int, target: Optional[BinaryIO] = None) -> Digest:
    digest, announced = Digest(), _length(response)
    while chunk := response.read(CHUNK):
        digest.update(chunk)
        check_size(digest.size, max_bytes)
        if target is not None:
            write_all(target, chunk)
    if announced not in (None, digest.size):
        raise Trouble(BROKEN, f"the connection ended after {digest.size} of {announced} bytes")
    return digest


def _length(response: HTTPResponse) -> Optional[int]:
    return None if response.chunked else whole_number(response.headers.get("Content-Length", ""))


def _is_known(transfer: dict[str, Any], response: HTTPResponse) -> bool:
    """Whether something else than the end of the connection tells that all has come."""
    return any(transfer[name] is not None for name in ("size", "adler32", "sha256")) or bool(
        checksums_in(response.headers)
    )


def _compare_with_head(web: Web, url: str, digest: Digest) -> bool:
    """Whether the server has told checksums of its file by HEAD, which are then this digest's."""
    try:
        with web.ask("HEAD", url, _WANTED) as response:
            size, told = _length(response), checksums_in(response.headers)
    except Trouble as trouble:
        if trouble.why in (PROTOCOL, BROKEN):  # it has no HEAD, or no checksums, and says so in whatever way
            return False
        raise
    digest.demand({"size": size, **told}, "the server's")
    return bool(told)


def _has_webdav(web: Web, url: str) -> bool:
    """A URL with a query is signed for one name and one use."""
    if https(url).query:
        return False
    try:
        with web.ask("OPTIONS", url, {}) as response:
            return "DAV" in response.headers or "MOVE" in response.headers.get("Allow", "").upper()
    except Trouble as trouble:
        if trouble.why in (PROTOCOL, MISSING, REFUSED):  # whether the file may be put there, PUT will tell
            return False
        raise


def _by_move(web: Web, url: str, temporary: str, source: BinaryIO, what: str) -> Digest:
    digest = _put(web, temporary, source, what, ours=True)
    try:
        if not _move(web, temporary, url, overwrite="F"):
            there = _is_collection(web, url)
            if there is not False:
                raise Trouble(NOT_A_FILE if there else REFUSED, _KEPT)
            if not _move(web, temporary, url, overwrite="T"):
                raise Trouble(REFUSED, _KEPT)
        return digest
    except Trouble as trouble:
        _remove(web, temporary)
        if trouble.why == PROTOCOL:
            raise _NoMoveError from trouble
        raise


def _move(web: Web, temporary: str, url: str, *, overwrite: str) -> bool:
    """Whether it was moved; not, where something is there that may not be overwritten."""
    headers = {"Destination": https(url).geturl(), "Overwrite": overwrite}
    with web.ask("MOVE", temporary, headers, also=_PRECONDITION_FAILED) as response:
        return response.status != _PRECONDITION_FAILED


def _is_collection(web: Web, url: str) -> Optional[bool]:
    """Whether a collection is there; None where that cannot be told.

    To overwrite one, or to delete it, removes all that is in it (RFC 4918 9.6.1, 9.9.3).
    """
    try:
        with web.ask("PROPFIND", url, {"Depth": "0"}) as response:
            text = response.read(CHUNK)
    except Trouble:
        return None
    return response.status != _MULTI_STATUS or _COLLECTION.search(text) is not None


def _put(web: Web, url: str, source: BinaryIO, what: str, *, ours: bool) -> Digest:
    """Send and verify; what is not right does not stay.

    Unless the name is ours alone: who was refused before the first byte leaves what was there before; and who is told
    to end leaves what is there now, since it may be another attempt's, which is given the same name.
    """
    digest, taken = Digest(), False
    try:
        web.put(url, source, os.fstat(source.fileno()).st_size, what, digest.update)
        taken = True
        if not _compare_with_head(web, url, digest):
            with web.ask("GET", url, {}) as response:
                _digest_of(response, digest.size).demand(digest.to_wire(), "the payload's")
    except BaseException as error:
        told_to_end = not isinstance(error, Exception)
        if ours or ((taken or digest.size) and not told_to_end):
            _remove(web, url)
        raise
    return digest


def _remove(web: Web, url: str) -> None:
    """A repeat, or a name that is not there, is no error: the reason to remove is the one to tell."""
    allow_s(_CLEARING_S)
    with contextlib.suppress(Trouble), web.ask("DELETE", url, {}):
        pass


def _beside(url: str, name: str) -> str:
    parts = https(url)
    return parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}", fragment="").geturl()
