"""Both sides of a MyProxy v2 conversation, without I/O: bytes in, events out.

``receive_data`` takes what came from the socket, ``next_event`` gives events until ``NEED_DATA``; ``send_…``
give the bytes to write. A peer's fault is a ``ProtocolViolationError``, the peer's closing early an
``ClosedEarlyError``; calling in the wrong state is a ``RuntimeError``, because it is a bug of ours.

The conversation after the first OK::

    command              client                       server
    GET                  request (CSR)        ->
                                              <-      chain, OK
    PUT                                       <-      request (CSR)
                         chain                ->
                                              <-      OK
    STORE                PEM text             ->
                                              <-      OK
    RETRIEVE                                  <-      PEM text, OK
    all others                                        (the first OK is the last)

Source: MyProxy protocol, version 2; gridcf/gct, myproxy/source/myproxy_protocol.c.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Optional, Union

from airpanda.core.secret import Secret
from airpanda.myproxy import messages
from airpanda.myproxy.errors import ClosedEarlyError, MyProxyRequestError, ProtocolViolationError
from airpanda.myproxy.messages import Outcome, Response
from airpanda.myproxy.values import MAX_MESSAGE_BYTES, Command, Request
from airpanda.myproxy.wire import MAX_ITEM_BYTES, Buffer, encode_chain

START_BYTE = b"0"
AUTHORIZE_SHA1, AUTHORIZE_SHA256 = 2, 4
MAX_SIGNATURE_BYTES = 4096


class NeedData(Enum):
    """The type of ``NEED_DATA``."""

    NEED_DATA = 0


NEED_DATA: Final = NeedData.NEED_DATA


@dataclass(frozen=True)
class Accepted:
    """The server's first OK; ``response`` carries INFO's and GET_TRUSTROOTS's fields."""

    response: Response


@dataclass(frozen=True)
class Challenged:
    """Prove the old proxy: sign one of these texts, ``{"X509_certificate_SHA256": "<hex>", …}``."""

    challenges: dict[str, str]


@dataclass(frozen=True)
class Refused:
    """The server's ERROR lines, raw. Nothing follows."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class ChainReceived:
    """Certificates in DER, leaf first."""

    chain: tuple[bytes, ...]


@dataclass(frozen=True)
class CsrReceived:
    """A PKCS#10 request in DER."""

    csr: bytes


@dataclass(frozen=True)
class PemReceived:
    """Certificates and key as stored."""

    pem: Secret[bytes]


@dataclass(frozen=True)
class AuthorizationReceived:
    """A client's answer to a challenge."""

    method: int
    signature: bytes = field(repr=False)
    chain: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class RequestReceived:
    """A client's request."""

    request: Request


@dataclass(frozen=True)
class Done:
    """The command has succeeded to its end."""


ClientEvent = Union[Accepted, Challenged, Refused, ChainReceived, CsrReceived, PemReceived, Done]
ServerEvent = Union[RequestReceived, AuthorizationReceived, CsrReceived, ChainReceived, PemReceived]


class State(Enum):
    """What comes next."""

    IDLE = "idle"
    RESPONSE = "waiting for a response"
    ANSWER = "waiting for our answer to a challenge"
    CHAIN = "waiting for certificates"
    CSR = "waiting for a certificate request"
    PEM = "waiting for a stored credential"
    SEND_CHAIN = "our certificates are due"
    SEND_PEM = "our credential is due"
    FINAL = "waiting for the final response"
    REQUEST = "waiting for a request"
    AUTHORIZATION = "waiting for the answer to our challenge"
    WORKING = "our response is due"
    DONE = "over"


_AFTER_OK = {
    Command.GET: State.CHAIN,
    Command.PUT: State.CSR,
    Command.STORE: State.SEND_PEM,
    Command.RETRIEVE: State.PEM,
}
_SERVED = {
    Command.GET: State.CSR,
    Command.PUT: State.WORKING,
    Command.STORE: State.PEM,
    Command.RETRIEVE: State.WORKING,
}


class ClientProtocol:
    """One request of a client, from its first byte to the last response."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._buffer = Buffer()
        self._over = False
        self.state = State.IDLE

    def send_request(self) -> list[bytes]:
        """The start byte and the request; write each by itself, so that each is one TLS record."""
        _require(self.state, State.IDLE)
        data = [START_BYTE, messages.encode_request(self._request)]
        self.state = State.RESPONSE
        return data

    def send_csr(self, csr: bytes) -> bytes:
        """For GET: before the first response, if no challenge is expected, or after it."""
        _require(self.state, State.RESPONSE, State.CHAIN)
        return csr

    def send_authorization(self, method: int, signature: bytes, chain: list[bytes]) -> bytes:
        """The answer to a challenge: the old proxy's signature and chain."""
        _require(self.state, State.ANSWER)
        self.state = State.RESPONSE
        head = bytes([method, 0, 0, 0]) + len(signature).to_bytes(4, "big")
        return head + signature + encode_chain(chain)

    def send_chain(self, chain: list[bytes]) -> bytes:
        """For PUT: the signed proxy, its issuer, and so on to the end entity."""
        _require(self.state, State.SEND_CHAIN)
        self.state = State.FINAL
        return encode_chain(chain)

    def send_pem(self, pem: Secret[bytes]) -> bytes:
        """For STORE: certificate, key, chain; together with its NUL one TLS record.

        Raises:
            MyProxyRequestError: too long for that.
        """
        _require(self.state, State.SEND_PEM)
        if len(pem.reveal()) >= MAX_MESSAGE_BYTES:
            raise MyProxyRequestError(f"the credential has {len(pem.reveal())} bytes, over {MAX_MESSAGE_BYTES}")
        self.state = State.FINAL
        return pem.reveal() + b"\0"

    def receive_data(self, data: bytes) -> None:
        """Take received bytes; empty means that the peer has closed."""
        self._over = self._over or not data
        self._buffer.feed(data)

    def next_event(self) -> Union[ClientEvent, NeedData]:
        """The next event, or ``NEED_DATA``.

        Raises:
            ProtocolViolationError: the peer does not speak MyProxy.
            ClosedEarlyError: the peer has closed before the end.
        """
        event = self._parse()
        if event is not None:
            return event
        if self._over and self.state is not State.DONE:
            raise ClosedEarlyError(f"the MyProxy server has closed the connection while we were {self.state.value}")
        return NEED_DATA

    def _parse(self) -> Optional[ClientEvent]:
        if self.state in (State.RESPONSE, State.FINAL):
            return self._parse_response()
        if self.state in (State.CHAIN, State.CSR) and self._buffer.starts_with_text():
            return self._parse_response()  # an error in place of the body
        if self.state is State.CHAIN:
            chain = self._buffer.chain()
            return self._advance(State.FINAL, ChainReceived(tuple(chain)) if chain is not None else None)
        if self.state is State.CSR:
            csr = self._buffer.item()
            return self._advance(State.SEND_CHAIN, CsrReceived(csr) if csr is not None else None)
        return self._parse_pem() if self.state is State.PEM else None

    def _parse_pem(self) -> Optional[ClientEvent]:
        text = self._buffer.text()
        if text is None:
            return None
        if text.startswith(b"VERSION="):
            return self._on_response(messages.decode_response(text))
        return self._advance(State.FINAL, PemReceived(Secret(text)))

    def _parse_response(self) -> Optional[ClientEvent]:
        self._buffer.skip_nuls()
        text = self._buffer.text()
        return None if text is None else self._on_response(messages.decode_response(text))

    def _on_response(self, response: Response) -> ClientEvent:
        if response.outcome is Outcome.ERROR:
            self.state = State.DONE
            return Refused(tuple(response.all("ERROR")))
        if response.outcome is Outcome.AUTHORIZATION:
            return self._on_challenge(response)
        if self.state is State.FINAL:
            self.state = State.DONE
            return Done()
        if self.state is not State.RESPONSE:
            raise ProtocolViolationError("the MyProxy server answers OK where data belong")
        self.state = _AFTER_OK.get(self._request.command, State.DONE)
        return Accepted(response)

    def _on_challenge(self, response: Response) -> ClientEvent:
        if self.state is not State.RESPONSE or self._request.command is not Command.GET:
            raise ProtocolViolationError("the MyProxy server asks for authorization at the wrong time")
        self.state = State.ANSWER
        pairs = (data.partition(":") for data in response.all("AUTHORIZATION_DATA"))
        return Challenged({method: text for method, _, text in pairs})

    def _advance(self, state: State, event: Optional[ClientEvent]) -> Optional[ClientEvent]:
        if event is not None:
            self.state = state
        return event


class ServerProtocol:
    """One connection of a server: one request, and what belongs to it."""

    def __init__(self) -> None:
        self._buffer = Buffer(2 * MAX_MESSAGE_BYTES + 16 * MAX_ITEM_BYTES // 8)
        self._command: Optional[Command] = None
        self._started = False
        self._over = False
        self.state = State.REQUEST

    def receive_data(self, data: bytes) -> None:
        """Take received bytes; empty means that the peer has closed."""
        self._over = self._over or not data
        self._buffer.feed(data)

    def end_of_record(self) -> None:
        """Say that a TLS record ends here: MyProxyClient's request has no NUL and ends with its record."""
        text = self._buffer.peek(MAX_MESSAGE_BYTES)
        if self.state is State.REQUEST and b"\0" not in text and b"\nLIFETIME=" in text and text.endswith(b"\n"):
            self._buffer.feed(b"\0")

    def next_event(self) -> Union[ServerEvent, NeedData]:
        """The next event, or ``NEED_DATA``.

        Raises:
            RequestError: the request is not one; answer with ``send_error``.
            ProtocolViolationError: the peer does not speak MyProxy.
            ClosedEarlyError: the peer has closed before the end.
        """
        event = self._parse()
        if event is not None:
            return event
        if self._over and self.state not in (State.DONE, State.WORKING):
            raise ClosedEarlyError(f"the client has closed the connection while we were {self.state.value}")
        return NEED_DATA

    def send_ok(self, fields: tuple[tuple[str, str], ...] = ()) -> bytes:
        """Accept the request; for commands without data this is the end."""
        _require(self.state, State.WORKING)
        self.state = State.DONE if self._command is None else _SERVED.get(self._command, State.DONE)
        return messages.encode_response(Response(Outcome.OK, fields))

    def send_final(self) -> bytes:
        """The OK after the data."""
        _require(self.state, State.WORKING)
        self.state = State.DONE
        return messages.encode_response(Response(Outcome.OK))

    def send_error(self, *lines: str) -> bytes:
        """Refuse, at any time before the end."""
        self.state = State.DONE
        return messages.encode_response(Response(Outcome.ERROR, tuple(("ERROR", line) for line in lines)))

    def send_challenge(self, challenge: str) -> bytes:
        """Ask a renewer to sign this text with the old proxy's key."""
        _require(self.state, State.WORKING)
        self.state = State.AUTHORIZATION
        methods = ("X509_certificate", "X509_certificate_SHA256")
        fields = tuple(("AUTHORIZATION_DATA", f"{method}:{challenge}") for method in methods)
        return messages.encode_response(Response(Outcome.AUTHORIZATION, fields))

    def send_csr(self, csr: bytes) -> bytes:
        """For PUT, after OK."""
        _require(self.state, State.WORKING)
        self.state = State.CHAIN
        return csr

    def send_chain(self, chain: list[bytes]) -> bytes:
        """For GET, after the client's request; ``send_final`` follows."""
        _require(self.state, State.WORKING)
        return encode_chain(chain)

    def send_pem(self, pem: Secret[bytes]) -> bytes:
        """For RETRIEVE, after OK; ``send_final`` follows."""
        _require(self.state, State.WORKING)
        return pem.reveal() + b"\0"

    def _parse(self) -> Optional[ServerEvent]:
        if self.state is State.REQUEST:
            return self._parse_request()
        event: Optional[ServerEvent] = None
        if self.state is State.CSR:
            csr = self._buffer.item()
            event = CsrReceived(csr) if csr is not None else None
        elif self.state is State.CHAIN:
            chain = self._buffer.chain()
            event = ChainReceived(tuple(chain)) if chain is not None else None
        elif self.state is State.PEM:
            text = self._buffer.text()
            event = PemReceived(Secret(text)) if text is not None else None
        elif self.state is State.AUTHORIZATION:
            event = self._parse_authorization()
        if event is not None:
            self.state = State.WORKING
        return event

    def _parse_request(self) -> Optional[ServerEvent]:
        if not self._started and len(self._buffer):
            if self._buffer.take(1) != START_BYTE:
                raise ProtocolViolationError("the client does not start with '0'; GSSAPI delegation is not supported")
            self._started = True
        text = self._buffer.text()
        if text is None:
            if len(self._buffer) > MAX_MESSAGE_BYTES:
                raise ProtocolViolationError(f"the request has more than {MAX_MESSAGE_BYTES} bytes")
            return None
        self.state = State.WORKING
        request = messages.decode_request(text)
        self._command = request.command
        return RequestReceived(request)

    def _parse_authorization(self) -> Optional[ServerEvent]:
        """Four bytes of method, four of length, the signature, a chain; used only when all of it is there."""
        head = self._buffer.peek(8)
        if len(head) < 8:
            return None
        size = int.from_bytes(head[4:], "big")
        if not 1 <= size <= MAX_SIGNATURE_BYTES:
            raise ProtocolViolationError(f"the client announces a signature of {size} bytes")
        body = Buffer()
        body.feed(self._buffer.peek(len(self._buffer))[8 + size :])
        chain = body.chain()
        if chain is None:
            return None
        data = self._buffer.take(len(self._buffer) - len(body))
        return AuthorizationReceived(head[0], data[8 : 8 + size], tuple(chain))


def _require(state: State, *allowed: State) -> None:
    if state not in allowed:
        raise RuntimeError(f"this cannot be sent while {state.value}")
