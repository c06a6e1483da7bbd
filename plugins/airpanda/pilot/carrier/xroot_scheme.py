"""``root:`` URLs: XRootD's own clients, where the node has them, with the owner's proxy.

A client proves with the proxy who it is, by GSI and nothing else, and delegates nothing. Without TLS, which the server
decides, files cross the network in the clear.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import shutil
import subprocess
from typing import Any, Optional
from urllib.parse import urlsplit

from airpanda.pilot.carrier.limit import allow, allow_s
from airpanda.pilot.carrier.local import CHUNK, check_size, digest_of, give_name, open_input, open_output
from airpanda.pilot.carrier.outcome import (
    BROKEN,
    CREDENTIAL,
    MISMATCH,
    MISSING,
    NO_SPACE,
    NOT_A_FILE,
    PROTOCOL,
    REFUSED,
    TIMEOUT,
    UNSUPPORTED,
    Digest,
    Trouble,
)

_CLEARING_S = 30.0
_PATIENCE = {
    "XRD_CONNECTIONWINDOW": "30",
    "XRD_CONNECTIONRETRY": "1",
    "XRD_REQUESTTIMEOUT": "60",
    "XRD_STREAMTIMEOUT": "60",
    "XRD_TIMEOUTRESOLUTION": "1",
    "XRD_CPRETRY": "0",
    "XRD_LOGLEVEL": "Error",
}
# XProtocol.hh: the numbers in brackets are the server's.
_NUMBER = re.compile(r"\[(3[0-9]{3})\]")
_BY_NUMBER = {
    "3000": PROTOCOL,
    "3006": PROTOCOL,
    "3009": NO_SPACE,
    "3010": REFUSED,
    "3011": MISSING,
    "3013": PROTOCOL,
    "3015": NOT_A_FILE,
    "3016": NOT_A_FILE,
    "3018": REFUSED,
    "3021": NO_SPACE,
    "3030": CREDENTIAL,
}
_BY_WORDS = (
    ("Auth failed", CREDENTIAL),
    ("Operation expired", TIMEOUT),
    ("timed out", TIMEOUT),
    ("File too large", MISMATCH),
)
_SIZE = re.compile(r"^Size:\s+([0-9]+)$", re.MULTILINE)
_DIRECTORY = re.compile(r"^Flags:.*\bIsDir\b", re.MULTILINE)
_CHECKSUM = re.compile(r"^adler32\s+([0-9a-fA-F]{1,8})$", re.MULTILINE)


def fetch(transfer: dict[str, Any], max_bytes: int, ca_dir: str) -> Digest:
    """Copy the file into the sandbox, under its name once it is whole, what was declared and what the server has.

    Raises:
        Trouble: nothing has arrived.
    """
    there, temporary = _Place(transfer["url"], ca_dir), transfer["temporary"]
    size = there.size()
    check_size(size, max_bytes)
    if transfer["size"] not in (None, size):
        raise Trouble(MISMATCH, f"its size is {size}, the declared one is {transfer['size']}")
    allow(size)
    try:
        there.copy(there.url, f"./{temporary}", max_bytes=size)
        with open_input(temporary) as file:
            digest = digest_of(file, temporary)
        digest.demand(transfer, "the declared one")
        digest.demand({"size": size, "adler32": there.adler32()}, "the server's")
        give_name(temporary, transfer["lfn"])
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return digest


def send(transfer: dict[str, Any], max_bytes: int, ca_dir: str) -> Digest:
    """Copy an output beside its place, compare what the server then has, and give it its name.

    Raises:
        Trouble: it is not there.
    """
    with open_output(transfer["lfn"]) as source:
        size = os.fstat(source.fileno()).st_size
        check_size(size, max_bytes)
        allow(size)
        digest = digest_of(source, transfer["lfn"])
    final = _Place(transfer["url"], ca_dir)
    there = final.beside(transfer["temporary"])
    try:
        there.copy(f"./{transfer['lfn']}", there.url)
        adler32 = there.adler32()
        digest.demand({"size": there.size(), "adler32": adler32}, "the server's")
        if adler32 is None:
            there.read_back(digest.size).demand(digest.to_wire(), "the payload's")
        there.move_to(final)
    except BaseException:
        there.remove()
        raise
    return digest


class _Place:
    """A file at a server. ``url`` is what ``xrdcp`` takes, ``path`` what ``xrdfs`` takes with the server's name."""

    def __init__(self, url: str, ca_dir: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self._server = parts.netloc
        self.path = parts.path[1:]
        self._ca_dir = ca_dir
        if not self.path.startswith("/") or parts.query or self.path.endswith("/"):
            raise Trouble(PROTOCOL, "a root: URL must be root://host[:port]//path/of/a/file, without a query")

    def beside(self, name: str) -> _Place:
        folder = self.path.rpartition("/")[0]
        return _Place(f"root://{self._server}/{folder}/{name}", self._ca_dir)

    def size(self) -> int:
        text = self._run("xrdfs", self._server, "stat", self.path)
        found = _SIZE.search(text)
        if found is None:
            raise Trouble(PROTOCOL, f"{self._server} does not tell the size of the file")
        if _DIRECTORY.search(text):
            raise Trouble(NOT_A_FILE, f"{self.path} is a directory")
        return int(found.group(1))

    def adler32(self) -> Optional[str]:
        """The server's own checksum, or None where it has none to tell."""
        try:
            found = _CHECKSUM.search(self._run("xrdfs", self._server, "query", "checksum", self.path))
        except Trouble as trouble:
            if trouble.why in (PROTOCOL, BROKEN):
                return None
            raise
        return None if found is None else found.group(1).lower().rjust(8, "0")

    def read_back(self, size: int) -> Digest:
        """What the server gives for the file, up to one byte more than this."""
        digest = Digest()
        argv = [_program("xrdcp"), "--nopbar", self.url, "-"]
        with subprocess.Popen(
            argv, env=self._environ(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            while digest.size <= size and (chunk := process.stdout.read(CHUNK)):
                digest.update(chunk)
            process.kill()  # no error where it has ended
        return digest

    def copy(self, source: str, target: str, *, max_bytes: Optional[int] = None) -> None:
        """``max_bytes`` bounds each file that is written here; None where none is."""
        self._run("xrdcp", "--nopbar", "--force", "--posc", source, target, max_bytes=max_bytes)

    def move_to(self, final: _Place) -> None:
        self._run("xrdfs", self._server, "mv", self.path, final.path)

    def remove(self) -> None:
        """A repeat, or a name that is not there, is no error."""
        allow_s(_CLEARING_S)
        with contextlib.suppress(Trouble):
            self._run("xrdfs", self._server, "rm", self.path)

    def _run(self, name: str, *arguments: str, max_bytes: Optional[int] = None) -> str:
        bound = None if max_bytes is None else functools.partial(_bound_files, max_bytes)
        done = subprocess.run(
            [_program(name), *arguments],
            env=self._environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=bound,
        )
        text = done.stdout.decode("utf-8", "replace")
        if done.returncode != 0:
            raise Trouble(_why(text), f"{self._server}: {' '.join(text.split())[-300:] or f'{name} ended badly'}")
        return text

    def _environ(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "X509_USER_PROXY") if name in os.environ}
        return {**kept, **_PATIENCE, "XrdSecPROTOCOL": "gsi", "X509_CERT_DIR": self._ca_dir, "LC_ALL": "C"}


def _bound_files(max_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))


def _program(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        raise Trouble(UNSUPPORTED, f"{name} is not installed on this node")
    return program


def _why(text: str) -> str:
    number = _NUMBER.search(text)
    if number is not None:
        return _BY_NUMBER.get(number.group(1), BROKEN)
    return next((why for words, why in _BY_WORDS if words in text), BROKEN)
