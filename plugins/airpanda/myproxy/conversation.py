"""One request of a client over one connection: the protocol driven by a socket."""

from __future__ import annotations

import ssl
from typing import Optional, TypeVar

from airpanda.myproxy import errors, protocol, tls
from airpanda.myproxy.protocol import ClientEvent, ClientProtocol

E = TypeVar("E")


class Conversation:
    """One conversation over one connection."""

    def __init__(self, connection: tls.Connection, machine: ClientProtocol) -> None:
        self._connection = connection
        self.protocol = machine

    def start(self, early_csr: Optional[bytes]) -> None:
        outgoing = self.protocol.send_request()
        if early_csr is not None:
            outgoing.append(self.protocol.send_csr(early_csr))
        try:
            for message in outgoing:
                self._connection.send(message)
        except (ConnectionError, ssl.SSLError):
            return  # refused and closed already: the reason is there to be read

    def send(self, data: bytes) -> None:
        self._connection.send(data)

    def next(self) -> ClientEvent:
        """The next event.

        Raises:
            MyProxyRefusedError: the server refuses; MyProxyRequestError where it blames the request.
        """
        event = self.protocol.next_event()
        while event is protocol.NEED_DATA:
            self.protocol.receive_data(self._connection.receive())
            event = self.protocol.next_event()
        if isinstance(event, protocol.Refused):
            raise errors.refusal(event.lines)
        return event

    def expect(self, kind: type[E]) -> E:
        """The next event, which must be of this kind."""
        return require(self.next(), kind)


def require(event: object, kind: type[E]) -> E:
    if not isinstance(event, kind):
        raise errors.ProtocolViolationError(f"the MyProxy server sends {type(event).__name__} at a wrong time")
    return event
