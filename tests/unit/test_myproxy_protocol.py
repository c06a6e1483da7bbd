"""The protocol, both sides: whole, byte by byte, with rubbish, and as a round trip."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzz import examples

from airpanda.core.errors import AirpandaError, RequestError
from airpanda.core.secret import Secret
from airpanda.myproxy import messages, protocol
from airpanda.myproxy.errors import ClosedEarlyError, MyProxyRequestError, ProtocolViolationError
from airpanda.myproxy.messages import decode_request, decode_response, encode_request, encode_response
from airpanda.myproxy.protocol import NEED_DATA, ClientProtocol, ServerProtocol
from airpanda.myproxy.values import Command, CredentialInfo, Policies, Request
from airpanda.x509 import der

OK = b"VERSION=MYPROXYv2\nRESPONSE=0\n\0"
ITEM = der.wrap(der.SEQUENCE, b"\x05\x00" * 100)
TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="="), max_size=60)
PASSPHRASES = st.just("") | st.text(st.characters(min_codepoint=33, max_codepoint=60), min_size=6, max_size=40)


def _request(command: Command = Command.GET, **changes: object) -> Request:
    return Request(command, "alice", Secret("secret words"), lifetime_s=60, **changes)  # type: ignore[arg-type]


def test_a_request_byte_by_byte() -> None:
    request = _request(cred_name="aa", policies=Policies(retriever="/O=x/CN=*"))
    assert encode_request(request) == (
        b"VERSION=MYPROXYv2\nCOMMAND=0\nUSERNAME=alice\nPASSPHRASE=secret words\nLIFETIME=60\n"
        b"RETRIEVER=/O=x/CN=*\nCRED_NAME=aa\n\0"
    )


@given(st.sampled_from(Command), TEXT, PASSPHRASES, st.integers(0, 10**9), TEXT | st.none(), TEXT | st.none())
def test_requests_come_back_as_they_were(
    command: Command, username: str, passphrase: str, lifetime: int, name: str | None, retriever: str | None
) -> None:
    request = Request(
        command,
        username,
        Secret(passphrase),
        lifetime_s=lifetime,
        cred_name=name,
        policies=Policies(retriever=retriever, renewer=name),
    )
    back = decode_request(encode_request(request)[:-1])
    assert back == request
    assert back.passphrase == request.passphrase


@pytest.mark.parametrize(
    "changes",
    [
        {"cred_name": "a\nCOMMAND=3"},
        {"description": "\x00"},
        {"description": "PASSPHRASE=x"},
        {"policies": Policies(retriever="x\r")},
        {"policies": Policies(renewer="retriever=*")},
        {"voms": ("a\nb",)},
        {"cred_name": "\ud800"},
        {"new_passphrase": Secret("short")},
        {"new_passphrase": Secret("x" * 1024)},
        {"new_passphrase": Secret("secret\nUSERNAME=bob")},
    ],
)
def test_what_a_request_may_not_hold(changes: dict[str, object]) -> None:
    with pytest.raises(RequestError) as caught:
        _request(**changes)
    assert "bob" not in str(caught.value)


def test_requests_over_one_record() -> None:
    with pytest.raises(MyProxyRequestError, match="over 16384"):
        encode_request(_request(description="x" * 17000))


def test_nothing_shows_a_passphrase() -> None:
    assert "secret words" not in repr(_request(new_passphrase=Secret("secret words")))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"VERSION=MYPROXYv1\nCOMMAND=0\nUSERNAME=a\nPASSPHRASE=\nLIFETIME=0\n",
        b"VERSION=MYPROXYv2\nCOMMAND=8\nUSERNAME=a\nPASSPHRASE=\nLIFETIME=0\n",
        b"VERSION=MYPROXYv2\nCOMMAND=0x0\nUSERNAME=a\nPASSPHRASE=\nLIFETIME=0\n",
        b"VERSION=MYPROXYv2\nCOMMAND=0\nPASSPHRASE=\nLIFETIME=0\n",
        b"VERSION=MYPROXYv2\nCOMMAND=0\nUSERNAME=a\nPASSPHRASE=\nLIFETIME=-1\n",
        b"VERSION=MYPROXYv2\nCOMMAND=0\nUSERNAME=a\nPASSPHRASE=\nLIFETIME=9999999999999\n",
        b"VERSION=MYPROXYv2\nCOMMAND=0\nUSERNAME=a\nUSERNAME=b\nPASSPHRASE=\nLIFETIME=0\n",
        b"VERSION=MYPROXYv2\nCOMMAND=0\nUSERNAME=a\nPASSPHRASE=\nLIFETIME=0\nRETRIEVER=a\nRETRIEVER=*\n",
        b"VERSION=MYPROXYv2\nCOMMAND=0\nUSERNAME=a RETRIEVER=*\nPASSPHRASE=\nLIFETIME=0\n",
    ],
)
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(RequestError):
        decode_request(data)


def test_unknown_keys_and_repeated_voms_are_fine() -> None:
    data = b"VERSION=MYPROXYv2\nCOMMAND=0\nUSERNAME=a\nPASSPHRASE=\nLIFETIME=0\nODD=1\nVONAME=a\nVONAME=b\nno equals\n"
    assert decode_request(data).voms == ("a", "b")


@pytest.mark.parametrize(
    "data", [b"", b"x", b"VERSION=MYPROXYv2\n", b"VERSION=MYPROXYv2\nRESPONSE=3\n", b"RESPONSE=0\n"]
)
def test_what_is_no_response(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError):
        decode_response(data)


def test_lines_cannot_be_smuggled_into_a_response() -> None:
    data = encode_response(messages.Response(messages.Outcome.ERROR, (("ERROR", "a\nRESPONSE=0\nb"),)))
    assert decode_response(data[:-1]).outcome is messages.Outcome.ERROR
    assert data.count(b"\n") == 3


def test_info_of_several_credentials() -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    infos = tuple(
        CredentialInfo(name, "/O=x/CN=a", start, end, Policies("r", "n", "k", "t"), "text") for name in ("", "aa", "bb")
    )
    response = decode_response(
        encode_response(messages.Response(messages.Outcome.OK, messages.info_fields(infos)))[:-1]
    )
    assert messages.infos_of(response) == infos
    assert messages.infos_of(messages.Response(messages.Outcome.OK)) == ()
    with pytest.raises(ProtocolViolationError):
        messages.infos_of(messages.Response(messages.Outcome.OK, (("CRED_OWNER", "x"),)))


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", "\x1b"])
def test_trust_roots_with_other_names_are_refused(name: str) -> None:
    fields = messages.trust_root_fields({name: b"data"})
    with pytest.raises(ProtocolViolationError):
        messages.trust_roots_of(messages.Response(messages.Outcome.OK, fields))


def test_trust_roots() -> None:
    files = {"abc.0": b"\x00\xff", "abc.signing_policy": b""}
    response = messages.Response(messages.Outcome.OK, messages.trust_root_fields(files))
    assert messages.trust_roots_of(response).files == files


def _conversation(command: Command, step: int) -> list[object]:
    """Client and server talk through pipes that carry ``step`` bytes at a time; the events, in order."""
    client, server = ClientProtocol(_request(command, new_passphrase=Secret("new words"))), ServerProtocol()
    to_server, to_client, events = bytearray(b"".join(client.send_request())), bytearray(), []
    for _ in range(100_000):
        server.receive_data(bytes(to_server[:step])) if to_server else None
        del to_server[:step]
        client.receive_data(bytes(to_client[:step])) if to_client else None
        del to_client[:step]
        for side, event in (("server", server.next_event()), ("client", client.next_event())):
            if event is NEED_DATA:
                continue
            events.append(type(event).__name__)
            if side == "server":
                to_client += _serve(server, event)
            else:
                to_server += _react(client, command, event)
        if client.state is protocol.State.DONE and not to_client:
            break
    assert server.state is protocol.State.DONE
    return events


def _serve(server: ServerProtocol, event: object) -> bytes:
    if isinstance(event, protocol.RequestReceived):
        first = server.send_ok((("CRED_OWNER", "x"),))
        if event.request.command is Command.PUT:
            return first + server.send_csr(ITEM)
        if event.request.command is Command.RETRIEVE:
            return first + server.send_pem(Secret(b"-----BEGIN")) + server.send_final()
        return first
    if isinstance(event, protocol.CsrReceived):
        return server.send_chain([ITEM, ITEM]) + server.send_final()
    return server.send_final()


def _react(client: ClientProtocol, command: Command, event: object) -> bytes:
    if isinstance(event, protocol.Accepted) and command is Command.GET:
        return client.send_csr(ITEM)
    if isinstance(event, protocol.Accepted) and command is Command.STORE:
        return client.send_pem(Secret(b"-----BEGIN"))
    if isinstance(event, protocol.CsrReceived):
        return client.send_chain([ITEM])
    return b""


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("command", "events"),
    [
        (Command.GET, ["RequestReceived", "Accepted", "CsrReceived", "ChainReceived", "Done"]),
        (Command.PUT, ["RequestReceived", "Accepted", "CsrReceived", "ChainReceived", "Done"]),
        (Command.STORE, ["RequestReceived", "Accepted", "PemReceived", "Done"]),
        (Command.RETRIEVE, ["RequestReceived", "Accepted", "PemReceived", "Done"]),
        (Command.INFO, ["RequestReceived", "Accepted"]),
        (Command.DESTROY, ["RequestReceived", "Accepted"]),
        (Command.CHANGE_PASSPHRASE, ["RequestReceived", "Accepted"]),
        (Command.GET_TRUSTROOTS, ["RequestReceived", "Accepted"]),
    ],
)
def test_conversations_cut_anywhere(command: Command, events: list[str], step: int) -> None:
    assert sorted(map(str, _conversation(command, step))) == sorted(events)


def test_leading_nuls_of_a_tls_13_server_are_skipped() -> None:
    client = ClientProtocol(_request(Command.INFO))
    client.send_request()
    client.receive_data(b"\0")
    assert client.next_event() is NEED_DATA
    client.receive_data(b"\0" + OK)
    assert isinstance(client.next_event(), protocol.Accepted)


def test_renewal_and_its_answer() -> None:
    client, server = ClientProtocol(_request()), ServerProtocol()
    server.receive_data(b"".join(client.send_request()))
    assert isinstance(server.next_event(), protocol.RequestReceived)
    client.receive_data(server.send_challenge("ab" * 16))
    assert client.next_event() == protocol.Challenged(
        {"X509_certificate": "ab" * 16, "X509_certificate_SHA256": "ab" * 16}
    )
    answer = client.send_authorization(protocol.AUTHORIZE_SHA256, b"signature", [ITEM])
    assert answer[:8] == b"\x04\0\0\0\0\0\0\x09"
    for byte in answer[:-1]:
        server.receive_data(bytes([byte]))
        assert server.next_event() is NEED_DATA
    server.receive_data(answer[-1:])
    assert server.next_event() == protocol.AuthorizationReceived(4, b"signature", (ITEM,))


def test_an_error_in_place_of_certificates() -> None:
    client = ClientProtocol(_request())
    client.send_request()
    client.receive_data(OK + b"VERSION=MYPROXYv2\nRESPONSE=1\nERROR=one\nERROR=two\n\0")
    assert isinstance(client.next_event(), protocol.Accepted)
    assert client.next_event() == protocol.Refused(("one", "two"))


def test_a_request_that_ends_with_its_record() -> None:
    server = ServerProtocol()
    data = b"".join(ClientProtocol(_request()).send_request())[:-1]
    server.receive_data(data)
    assert server.next_event() is NEED_DATA
    server.end_of_record()
    assert isinstance(server.next_event(), protocol.RequestReceived)


def test_closing_early() -> None:
    client = ClientProtocol(_request())
    client.send_request()
    client.receive_data(OK[:-1])
    client.receive_data(b"")
    with pytest.raises(ClosedEarlyError, match="waiting for a response"):
        client.next_event()
    server = ServerProtocol()
    server.receive_data(b"")
    with pytest.raises(ClosedEarlyError):
        server.next_event()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.send_chain([ITEM]),
        lambda client: client.send_pem(Secret(b"x")),
        lambda client: client.send_csr(ITEM),
        lambda client: client.send_authorization(4, b"x", [ITEM]),
    ],
)
def test_our_own_misuse_is_a_bug(call: Callable[[ClientProtocol], object]) -> None:
    with pytest.raises(RuntimeError):
        call(ClientProtocol(_request()))


def test_buffers_are_bounded() -> None:
    client, server = ClientProtocol(_request()), ServerProtocol()
    client.send_request()
    with pytest.raises(ProtocolViolationError, match="more than 4194304"):
        client.receive_data(b"x" * 5_000_000)
    server.receive_data(b"0" + b"x" * 65536)
    with pytest.raises(ProtocolViolationError, match="more than 16384"):
        server.next_event()


FRAGMENTS = st.sampled_from(
    [OK, b"\0", b"V", b"\x01", ITEM, b"\x02" + ITEM + ITEM, b"ERROR=x\n", b"RESPONSE=2\n", b"0"]
)


@settings(max_examples=examples(400), deadline=None)
@given(st.sampled_from(Command), st.lists(FRAGMENTS | st.binary(max_size=40), max_size=12))
def test_a_client_survives_anything(command: Command, parts: list[bytes]) -> None:
    client = ClientProtocol(_request(command))
    client.send_request()
    try:
        for part in [*parts, b""]:
            client.receive_data(part)
            for _ in range(5):
                client.next_event()
    except AirpandaError:
        return
    assert client.state in (
        protocol.State.DONE,
        protocol.State.ANSWER,
        protocol.State.SEND_CHAIN,
        protocol.State.SEND_PEM,
    )


REQUEST = encode_request(_request())


@settings(max_examples=examples(400), deadline=None)
@given(st.sampled_from(Command), st.lists(FRAGMENTS | st.just(REQUEST) | st.binary(max_size=40), max_size=12))
def test_a_server_survives_anything(command: Command, parts: list[bytes]) -> None:
    server = ServerProtocol()
    try:
        for part in [b"0" + encode_request(_request(command)), *parts]:
            server.receive_data(part)
            event = server.next_event()
            if isinstance(event, protocol.RequestReceived) and server.state is protocol.State.WORKING:
                server.send_ok()
    except AirpandaError:
        return
    assert server.state is not protocol.State.REQUEST
