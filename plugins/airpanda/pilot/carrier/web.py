"""HTTP over TLS with the owner's proxy: one request at a time, each on a connection of its own.

The proxy is shown to the host and port that the URL names, and to nobody else. A redirect, by which a storage's door
sends its clients to the server that has the file, is followed over TLS only, and elsewhere without the proxy.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import io
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Callable, Optional
from urllib.parse import SplitResult, urljoin, urlsplit

from airpanda.pilot.carrier.local import chunks
from airpanda.pilot.carrier.outcome import (
    BROKEN,
    CREDENTIAL,
    MISSING,
    NO_SPACE,
    PROTOCOL,
    REFUSED,
    TIMEOUT,
    UNTRUSTED,
    Trouble,
)

IO_S = 60.0
"""The longest silence."""
CONTINUE_S = 5.0
"""How long a server may take to say whether it wants the body; RFC 9110 10.1.1 lets it say nothing."""
MAX_HOPS = 5
_MAX_HEAD = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_STATUS = {401: REFUSED, 403: REFUSED, 404: MISSING, 409: MISSING, 410: MISSING, 413: REFUSED, 507: NO_SPACE}
_PASSING = frozenset({408, 423, 425, 429, 500, 502, 503, 504})
_ABOUT_US = re.compile(r"ALERT.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)")
Sent = Callable[[bytes], None]


class Web:
    """Requests with one proxy. ``ca_dir``: the certificate directory that says whom to trust."""

    def __init__(self, ca_dir: str, proxy: str, origin: str) -> None:
        self._ca_dir = ca_dir
        self._proxy = proxy
        self._origin = _address(https(origin))

    @contextlib.contextmanager
    def ask(
        self, method: str, url: str, headers: Mapping[str, str], *, also: int = 0
    ) -> Iterator[http.client.HTTPResponse]:
        """The successful answer to a request without a body, or one of status ``also``; GET and HEAD follow redirects.

        Raises:
            Trouble: there is none.
        """
        for _ in range(MAX_HOPS):
            connection = self._connect(url)
            try:
                with _told(url), _heard(connection):
                    connection.request(method, _target(url), headers={"Accept-Encoding": "identity", **headers})
                    response = connection.getresponse()
                if response.status in _REDIRECTS and method in ("GET", "HEAD"):
                    url = _next(url, response.headers.get("Location"))
                    continue
                if response.status != also:
                    _check_status(response.status, response.headers, url)
                with _told(url):
                    yield response
                return
            finally:
                connection.close()
        raise Trouble(PROTOCOL, f"more than {MAX_HOPS} redirects")

    def put(self, url: str, file: BinaryIO, size: int, what: str, sent: Sent) -> None:
        """Send a file. It is read once; the body goes to the server that wants it, whichever that is.

        Raises:
            Trouble: it was not taken.
        """
        for _ in range(MAX_HOPS):
            connection = self._connect(url)
            try:
                status, headers = self._offer(connection, url, file, size, what, sent)
            finally:
                connection.close()
            if status not in _REDIRECTS:
                _check_status(status, headers, url)
                return
            url = _next(url, headers.get("Location"))
        raise Trouble(PROTOCOL, f"more than {MAX_HOPS} redirects")

    def _offer(
        self, connection: http.client.HTTPSConnection, url: str, file: BinaryIO, size: int, what: str, sent: Sent
    ) -> tuple[int, http.client.HTTPMessage]:
        """Status and headers of the final answer to one PUT."""
        with _told(url), _heard(connection):
            connection.putrequest("PUT", _target(url), skip_accept_encoding=True)
            connection.putheader("Content-Length", str(size))
            if size:  # XRootD 5.5 waits for the body of an empty file for ever
                connection.putheader("Expect", "100-continue")
            connection.endheaders()
            early = _early_answer(connection.sock) if size else None
            if early is not None:
                return early
            file.seek(0)
            whole = False
            try:
                for chunk in chunks(file, what):
                    connection.send(chunk)
                    sent(chunk)
                whole = True
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                pass  # it may have said why
            response = connection.getresponse()
            if not whole and response.status < 300:
                raise Trouble(BROKEN, f"{https(url).netloc} answered {response.status} without having taken the file")
            return response.status, response.headers

    def _connect(self, url: str) -> http.client.HTTPSConnection:
        parts = https(url)
        host, port = _address(parts)
        context = self._context(with_proxy=(host, port) == self._origin)
        connection = http.client.HTTPSConnection(host, port, timeout=IO_S, context=context)
        with _told(url):
            connection.connect()
        return connection

    def _context(self, *, with_proxy: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not os.access(self._ca_dir, os.R_OK | os.X_OK):
            raise Trouble(UNTRUSTED, f"the certificate directory {self._ca_dir} cannot be read by the owner's account")
        context.load_verify_locations(capath=self._ca_dir)
        if with_proxy:
            try:
                context.load_cert_chain(self._proxy, password="")
            except (OSError, ValueError) as error:
                raise Trouble(CREDENTIAL, f"the owner's proxy cannot be used: {type(error).__name__}") from None
        return context


def https(url: str) -> SplitResult:
    """The parts of an ``https:`` or ``davs:`` URL.

    Raises:
        Trouble: PROTOCOL.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("https", "davs") and parts.hostname and "@" not in parts.netloc:
            _address(parts)
            return parts._replace(scheme="https")
    except ValueError:  # no port, no address
        pass
    raise Trouble(PROTOCOL, "not an https URL of a host; over anything else nothing is sent")


def _address(parts: SplitResult) -> tuple[str, int]:
    return parts.hostname or "", 443 if parts.port is None else parts.port


def _target(url: str) -> str:
    parts = https(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _next(url: str, location: Optional[str]) -> str:
    if not location:
        raise Trouble(PROTOCOL, "a redirect to nowhere")
    return https(urljoin(https(url).geturl(), location)).geturl()


def _check_status(status: int, headers: http.client.HTTPMessage, url: str) -> None:
    if 200 <= status < 300:
        return
    why = _STATUS.get(status, BROKEN if status in _PASSING else PROTOCOL)
    host = https(url).netloc
    raise Trouble(why, f"{host} answered {status}", retry_after_s=whole_number(headers.get("Retry-After", "")))


def whole_number(text: str) -> Optional[int]:
    """A header's number in ASCII digits; None for anything else, and for more than 18 of them."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _early_answer(sock: socket.socket) -> Optional[tuple[int, http.client.HTTPMessage]]:
    """A final answer before the body; None when the body is wanted, or nothing was said in time."""
    sock.settimeout(CONTINUE_S)
    try:
        status, headers = _head(sock)
    except socket.timeout:
        return None
    finally:
        sock.settimeout(IO_S)
    return None if status == 100 else (status, headers)


def _head(sock: socket.socket) -> tuple[int, http.client.HTTPMessage]:
    """Read exactly a status line and its headers, so that what follows can be read by others."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte or len(data) > _MAX_HEAD:
            raise http.client.RemoteDisconnected("the server closed the connection")
        data += byte
    line, _, rest = data.partition(b"\r\n")
    words = line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise http.client.BadStatusLine(repr(line[:80]))
    return int(words[1]), http.client.parse_headers(io.BytesIO(rest))


@contextlib.contextmanager
def _heard(connection: http.client.HTTPSConnection) -> Iterator[None]:
    """Where a server has closed the connection, what it said last is the error: TLS 1.3 refuses a certificate so."""
    try:
        yield
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        if connection.sock is not None:
            connection.sock.recv(1)
        raise


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Errors of the network, of TLS and of HTTP as Trouble that names the host."""
    host = https(url).netloc
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise Trouble(UNTRUSTED, f"the certificate of {host} is not accepted ({error.verify_message})") from error
    except ssl.SSLError as error:
        reason = error.reason or "TLS failed"
        why = CREDENTIAL if _ABOUT_US.search(reason) else BROKEN
        raise Trouble(why, f"{host}: {reason}") from error
    except socket.timeout as error:
        raise Trouble(TIMEOUT, f"{host} was silent for {IO_S:.0f} s") from error
    except http.client.HTTPException as error:
        raise Trouble(BROKEN, f"{host}: the answer broke off or makes no sense ({type(error).__name__})") from error
    except OSError as error:
        raise Trouble(BROKEN, f"{host} cannot be reached: {error.strerror or error}") from error


def checksums_in(headers: http.client.HTTPMessage) -> dict[str, str]:
    """``adler32`` and ``sha256`` in hexadecimal, as far as an answer tells them.

    Source: RFC 3230 (``Digest``), RFC 9530 (``Repr-Digest``); Adler-32 is hexadecimal in IANA's registry.
    """
    found: dict[str, str] = {}
    for field in (headers.get("Digest"), headers.get("Repr-Digest")):
        for item in (field or "").split(","):
            name, _, value = item.strip().partition("=")
            known = _decoded(name.lower(), value.strip(':"'))
            if known is not None:
                found[name.lower().replace("-", "")] = known
    return found


def _decoded(name: str, value: str) -> Optional[str]:
    if name == "adler32" and re.fullmatch("[0-9A-Fa-f]{1,8}", value):
        return value.lower().rjust(8, "0")
    if name == "sha-256":
        try:
            raw = base64.b64decode(value, validate=True)
        except binascii.Error:
            return None
        return raw.hex() if len(raw) == 32 else None
    return None
