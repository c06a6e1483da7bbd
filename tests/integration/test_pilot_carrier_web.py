"""The carrier against HTTPS servers that are slow, broken, lying or somebody else; bad peers first."""

from __future__ import annotations

import base64
import hashlib
import signal
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.bad_storage import Handler, bad_storage
from support.carrier import Carrier
from support.pki import Pki, pki

from airpanda.pilot.transfers.plan import Transfer
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

__all__ = ["pki"]

CONTENT = b"0123456789" * 1000
ADLER32, SHA256 = f"{zlib.adler32(CONTENT):08x}", hashlib.sha256(CONTENT)
KNOWN = {"size": len(CONTENT), "adler32": ADLER32, "sha256": SHA256.hexdigest()}
MODULES = "from airpanda.pilot.carrier import web, limit, dav_scheme"
# Patient enough for any machine: whoever is busy is not silent.
PATIENT = f"{MODULES}; web.IO_S = 60.0; web.CONTINUE_S = 60.0"
QUICK = f"{MODULES}; web.IO_S = 3.0; web.CONTINUE_S = 0.3"
Script = Callable[[Handler], None]


def proxy_of(pki: Pki, place: Path, who: str = "alice", *, since: timedelta = timedelta(0), hours: float = 12) -> Path:
    owner = ProxyCredential.from_files(*pki.user(who))
    path = place / f"{who}-{since.total_seconds():.0f}.proxy"
    create_proxy(owner, lifetime=timedelta(hours=hours), now=datetime.now(UTC) + since).write(path)
    return path


@pytest.fixture
def carrier(tmp_path: Path, pki: Pki) -> Carrier:
    return Carrier(tmp_path, ca_dir=pki.ca_dir, proxy=proxy_of(pki, tmp_path), patch=PATIENT)


@pytest.fixture
def quick(tmp_path: Path, pki: Pki) -> Carrier:
    """One that soon finds its server silent."""
    return Carrier(tmp_path, ca_dir=pki.ca_dir, proxy=proxy_of(pki, tmp_path), patch=QUICK)


# --- inputs: bad peers ---


def raw(data: bytes) -> Script:
    def script(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return script


def drip(handler: Handler) -> None:
    for _ in range(200):
        handler.wfile.write(b"H")
        time.sleep(0.1)


def silence(handler: Handler) -> None:
    time.sleep(8)


BAD_ANSWERS: dict[str, tuple[Script, str, str]] = {
    "cut": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789"), "broken", "ended after 10 of 100"),
    "cut chunk": (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n0123456789"), "broken", "broke off"),
    "no length": (raw(b"HTTP/1.1 200 OK\r\n\r\n0123456789"), "broken", "does not say how long"),
    "no answer": (raw(b""), "broken", "broke off"),
    "no HTTP": (raw(b"SSH-2.0-server\r\n\r\n"), "broken", "makes no sense"),
    "part": (lambda h: h.reply(206, CONTENT), "protocol", "206"),
    "encoded": (lambda h: h.reply(200, CONTENT, Content_Encoding="gzip"), "protocol", "encoding"),
    "silent": (silence, "timeout", "was silent for 3 s"),
    "missing": (lambda h: h.reply(404), "missing", "answered 404"),
    "refused": (lambda h: h.reply(403), "refused", "answered 403"),
    "busy": (lambda h: h.reply(503, Retry_After="7"), "broken", "answered 503"),
    "busy for a superscript": (lambda h: h.reply(503, Retry_After="\u00b2"), "broken", "answered 503"),
    "busy for ever": (lambda h: h.reply(503, Retry_After="9" * 5000), "broken", "answered 503"),
    "of no length": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n0123456789"),
        "broken",
        "does not say how long",
    ),
    "strange": (lambda h: h.reply(418), "protocol", "answered 418"),
    "in the clear": (lambda h: h.reply(302, Location="http://localhost/d/a"), "protocol", "not an https URL"),
    "with a password": (lambda h: h.reply(302, Location="https://u:p@localhost/"), "protocol", "not an https URL"),
    "to nowhere": (lambda h: h.reply(302), "protocol", "a redirect to nowhere"),
    "in circles": (lambda h: h.reply(302, Location="/d/a"), "protocol", "more than 5 redirects"),
    "wrong digest": (
        lambda h: h.reply(200, CONTENT, Digest="adler32=00000001"),
        "mismatch",
        f"its adler32 is {ADLER32}, the server's is 00000001",
    ),
    "wrong digest of today": (
        lambda h: h.reply(200, CONTENT, Repr_Digest=f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"),
        "mismatch",
        f"the server's is {'0' * 64}",
    ),
    "too long": (lambda h: h.reply(200, CONTENT + b"0" * 10**5), "too-large", "of the job's disk limit"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_answer_leaves_nothing_and_is_named(request: pytest.FixtureRequest, pki: Pki, name: str) -> None:
    carrier = request.getfixturevalue("quick" if name == "silent" else "carrier")
    script, why, words = BAD_ANSWERS[name]
    with bad_storage(pki, script) as server:
        said = carrier.fetch(server.url(), max_bytes=10**5)
    assert (said["why"], words in said["detail"]) == (why, True), said
    assert said["retry_after_s"] == (7.0 if name == "busy" else None)
    assert carrier.left() == []


def test_more_than_was_announced_nowhere_is_cut_at_the_limit(carrier: Carrier, pki: Pki) -> None:
    def endless(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            handler.wfile.write(b"10000\r\n" + b"0" * 0x10000 + b"\r\n")

    with bad_storage(pki, endless) as server:
        assert carrier.fetch(server.url(), max_bytes=10**6)["why"] == "too-large"
    assert carrier.left() == []


def test_what_drips_in_for_ever_ends_at_the_time_that_its_size_allows(tmp_path: Path, pki: Pki) -> None:
    patch = f"{PATIENT}; limit.LEAST_S = 1.0"
    slow = Carrier(tmp_path, ca_dir=pki.ca_dir, proxy=proxy_of(pki, tmp_path), patch=patch)
    with bad_storage(pki, drip) as server:
        began = time.monotonic()
        assert slow.fetch(server.url(), size=10)["why"] == "timeout"
        assert time.monotonic() - began < 18, "of the twenty that it drips"


@pytest.mark.parametrize("name", ["size", "adler32", "sha256"])
def test_an_input_that_is_not_what_was_declared_does_not_arrive(carrier: Carrier, pki: Pki, name: str) -> None:
    wrong: Any = {"size": 5, "adler32": "00000001", "sha256": "0" * 64}[name]
    with bad_storage(pki, lambda h: h.reply(200, CONTENT)) as server:
        said = carrier.fetch(server.url(), **{name: wrong})
    assert (said["why"], said["detail"]) == ("mismatch", f"its {name} is {KNOWN[name]}, the declared one is {wrong}")
    assert carrier.left() == []


def test_a_server_of_another_ca_or_another_name_is_not_trusted(carrier: Carrier, pki: Pki, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other")
    with bad_storage(other, lambda h: h.reply(200, CONTENT), ca_dir=pki.ca_dir) as server:
        said = carrier.fetch(server.url())
        assert said["why"] == "untrusted"
        assert "is not accepted" in said["detail"]
        assert server.seen == []
    with bad_storage(pki, lambda h: h.reply(200, CONTENT)) as server:
        assert carrier.fetch(server.url(host="127.1"))["why"] == "untrusted"
        assert server.seen == []


def test_a_node_without_a_readable_certificate_directory_trusts_nobody(tmp_path: Path, pki: Pki) -> None:
    with bad_storage(pki, lambda h: h.reply(200, CONTENT)) as server:
        said = Carrier(tmp_path, proxy=proxy_of(pki, tmp_path)).fetch(server.url())
    assert said["why"] == "untrusted"
    assert "/nowhere cannot be read" in said["detail"]


def test_a_proxy_that_is_not_taken_is_the_owners_matter(tmp_path: Path, pki: Pki) -> None:
    old = proxy_of(pki, tmp_path, since=timedelta(minutes=-3), hours=1 / 60)
    (tmp_path / "damaged").write_text("no PEM")
    stranger = proxy_of(Pki(tmp_path / "other"), tmp_path, "bob")
    with bad_storage(pki, lambda h: h.reply(200, CONTENT)) as server:
        for number, proxy in enumerate((old, stranger, tmp_path / "damaged", tmp_path / "absent", None)):
            (tmp_path / str(number)).mkdir()
            said = Carrier(tmp_path / str(number), ca_dir=pki.ca_dir, proxy=proxy).fetch(server.url())
            assert said["why"] == "credential", (proxy, said)
        assert server.seen == []


def test_nobody_at_all_is_a_matter_of_time(carrier: Carrier, pki: Pki) -> None:
    with bad_storage(pki, silence) as server:
        url = server.url()
    said = carrier.fetch(url)
    assert (said["why"], said["detail"].split(" cannot be reached: ")[1]) == ("broken", "Connection refused")
    said = carrier.fetch("https://no-such-host.invalid/d/a?signature=canary")
    assert said["why"] == "broken"
    assert "canary" not in said["detail"]


# --- inputs: the proxy goes to one server only ---


def test_elsewhere_a_redirect_is_followed_without_the_proxy(carrier: Carrier, pki: Pki) -> None:
    with ExitStack() as stack:
        pool = stack.enter_context(bad_storage(pki, lambda h: h.reply(200, CONTENT, Digest=f"adler32={ADLER32}")))
        door = stack.enter_context(bad_storage(pki, lambda h: h.reply(307, Location=pool.url("pool/a"))))
        assert carrier.fetch(door.url(), **KNOWN) == {"lfn": "a", **KNOWN}
        assert "Alice Example" in door.seen[0].peer
        assert [(each.path, each.peer) for each in pool.seen] == [("/pool/a", "")]


def test_at_the_same_server_a_redirect_keeps_the_proxy(carrier: Carrier, pki: Pki) -> None:
    def script(handler: Handler) -> None:
        handler.reply(302, Location="b") if handler.path == "/d/a" else handler.reply(200, CONTENT)

    with bad_storage(pki, script) as server:
        assert carrier.fetch(server.url())["size"] == len(CONTENT)
        assert [each.path for each in server.seen] == ["/d/a", "/d/b", "/d/a", "/d/b"], "GET, and HEAD for a checksum"
        assert all("Alice Example" in each.peer for each in server.seen)


def test_without_a_length_something_else_must_say_that_all_has_come(carrier: Carrier, pki: Pki) -> None:
    with bad_storage(pki, raw(b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT)) as server:
        assert carrier.fetch(server.url(), size=len(CONTENT), adler32=ADLER32)["sha256"] == SHA256.hexdigest()
    with bad_storage(pki, raw(b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT[:-1])) as server:
        assert carrier.fetch(server.url(), "b", size=len(CONTENT))["why"] == "mismatch"


# --- outputs ---


class Dav:
    """What a script needs to be a small WebDAV server, with one thing wrong."""

    def __init__(self, **wrong: Script) -> None:
        self.files: dict[str, bytes] = {}
        self.wrong = wrong

    def __call__(self, handler: Handler) -> None:
        if handler.command in self.wrong:
            self.wrong[handler.command](handler)
            return
        body, path = handler.bad.seen[-1].body, handler.path
        if handler.command == "OPTIONS":
            handler.reply(200, DAV="1,2")
        elif handler.command == "PUT":
            self.files[path] = body
            handler.reply(201)
        elif path not in self.files:
            handler.reply(404)
        elif handler.command == "PROPFIND":
            handler.reply(207, b"<D:multistatus xmlns:D='DAV:'><D:resourcetype/></D:multistatus>")
        elif handler.command in ("GET", "HEAD"):
            handler.reply(200, self.files[path])
        elif handler.command == "DELETE":
            del self.files[path]
            handler.reply(204)
        else:
            target = handler.headers["Destination"].partition(f":{handler.bad.port}")[2]
            if target in self.files and handler.headers["Overwrite"] == "F":
                handler.reply(412)
                return
            self.files[target] = self.files.pop(path)
            handler.reply(201)


def cut(handler: Handler) -> None:
    handler.bad.seen[-1] = handler.bad.seen[-1]._replace(body=b"")
    handler.close_connection = True


def no_digest(size: int) -> Script:
    return lambda h: h.reply(200, b"0" * size)


BAD_TAKERS: dict[str, tuple[dict[str, Script], str, list[str]]] = {
    "cut": ({"PUT": cut}, "broken", ["OPTIONS", "PUT", "DELETE"]),
    "never answers": ({"PUT": silence}, "timeout", ["OPTIONS", "PUT", "DELETE"]),
    "fails": ({"PUT": lambda h: h.reply(500)}, "broken", ["OPTIONS", "PUT", "DELETE"]),
    "keeps less": ({"HEAD": no_digest(5)}, "mismatch", ["OPTIONS", "PUT", "HEAD", "DELETE"]),
    "keeps other": (
        {"HEAD": lambda h: h.reply(200, CONTENT, Digest="ADLER32=1")},
        "mismatch",
        ["OPTIONS", "PUT", "HEAD", "DELETE"],
    ),
    "returns other": ({"GET": no_digest(len(CONTENT))}, "mismatch", ["OPTIONS", "PUT", "HEAD", "GET", "DELETE"]),
    "does not move": (
        {"MOVE": lambda h: h.reply(403)},
        "refused",
        ["OPTIONS", "PUT", "HEAD", "GET", "MOVE", "DELETE"],
    ),
}


@pytest.mark.parametrize("name", BAD_TAKERS)
def test_an_output_that_is_not_kept_as_it_was_sent_is_never_seen_by_its_name(
    request: pytest.FixtureRequest, pki: Pki, name: str
) -> None:
    carrier = request.getfixturevalue("quick" if name == "never answers" else "carrier")
    wrong, why, methods = BAD_TAKERS[name]
    (carrier.sandbox / "a").write_bytes(CONTENT)
    dav = Dav(**wrong)
    with bad_storage(pki, dav) as server:
        said = carrier.send(server.url())
        assert (said["why"], server.methods) == (why, methods), said
        assert {each.path for each in server.seen[1:]} == {"/d/.out.part"}
    assert dav.files == {}


def test_who_is_refused_before_the_body_changes_nothing(carrier: Carrier, pki: Pki) -> None:
    (carrier.sandbox / "a").write_bytes(CONTENT)
    for status, why in ((403, "refused"), (507, "no-space"), (409, "missing"), (413, "refused")):
        with bad_storage(pki, Dav(PUT=lambda h, s=status: h.reply(s), OPTIONS=lambda h: h.reply(405))) as server:  # type: ignore[misc]
            server.reads = server.continues = False
            assert carrier.send(server.url())["why"] == why
            assert server.methods == ["OPTIONS", "PROPFIND", "PUT"], "and above all no DELETE of what was there before"


def test_with_webdav_an_output_has_another_name_until_it_is_whole(carrier: Carrier, pki: Pki) -> None:
    (carrier.sandbox / "a").write_bytes(CONTENT)
    dav = Dav()
    dav.files["/d/a"] = b"of an earlier attempt"
    with bad_storage(pki, dav) as server:
        assert carrier.send(server.url()) == {"lfn": "a", **KNOWN}
        methods = ["OPTIONS", "PUT", "HEAD", "GET", "MOVE", "PROPFIND", "MOVE"]
        assert server.methods == methods, "read back, since it tells no checksum; looked at, before it is replaced"
        assert all("Alice Example" in each.peer for each in server.seen)
    assert dav.files == {"/d/a": CONTENT}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda h: h.reply(207, b"<lp1:resourcetype><D:collection/></lp1:resourcetype>"), "not-a-file"),
        (lambda h: h.reply(207, b"<x:COLLECTION xmlns:x='DAV:'></x:COLLECTION>"), "not-a-file"),
        (lambda h: h.reply(200, b"<html>"), "not-a-file"),
        (lambda h: h.reply(405), "refused"),
        (lambda h: h.reply(404), "refused"),
    ],
    ids=["collection", "other prefix", "no answer to that", "no such method", "not there"],
)
def test_what_may_be_a_collection_is_not_replaced(carrier: Carrier, pki: Pki, answer: Script, why: str) -> None:
    (carrier.sandbox / "a").write_bytes(CONTENT)
    dav = Dav(PROPFIND=answer)
    dav.files["/d/a"] = b"perhaps a collection"
    with bad_storage(pki, dav) as server:
        assert carrier.send(server.url())["why"] == why
    assert dav.files == {"/d/a": b"perhaps a collection"}


@pytest.mark.parametrize("webdav", [True, False])
def test_who_is_told_to_end_removes_only_what_is_nobody_elses(carrier: Carrier, pki: Pki, webdav: bool) -> None:
    """The next attempt may have put its output at the same place by then."""
    (carrier.sandbox / "a").write_bytes(CONTENT)
    dav = Dav(HEAD=lambda h: time.sleep(30))
    if not webdav:
        dav.wrong["OPTIONS"] = lambda h: h.reply(405)
    with bad_storage(pki, dav) as server:
        process = carrier.start([Transfer("a", "out", server.url(), ".out.part")])
        while "HEAD" not in server.methods and process.poll() is None:
            time.sleep(0.02)
        dav.files["/d/a"] = b"of the next attempt"
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 128 + signal.SIGTERM
    assert dav.files == {"/d/a": b"of the next attempt"}


def test_without_webdav_a_collection_is_neither_written_nor_deleted(carrier: Carrier, pki: Pki) -> None:
    (carrier.sandbox / "a").write_bytes(CONTENT)
    collection: Script = lambda h: h.reply(207, b"<collection/>")  # noqa: E731
    dav = Dav(OPTIONS=lambda h: h.reply(405), PROPFIND=collection, PUT=cut)
    with bad_storage(pki, dav) as server:
        assert carrier.send(server.url())["why"] == "not-a-file"
        assert server.methods == ["OPTIONS", "PROPFIND"]


@pytest.mark.parametrize(
    "wrong",
    [{"OPTIONS": 405}, {"OPTIONS": 302}, {"OPTIONS": 403}, {"OPTIONS": 404}, {"MOVE": 405}, {"MOVE": 501}],
    ids=lambda wrong: str(wrong),
)
def test_without_webdav_an_output_is_put_in_place(carrier: Carrier, pki: Pki, wrong: dict[str, int]) -> None:
    (carrier.sandbox / "a").write_bytes(CONTENT)
    dav = Dav(**{method: lambda h, s=status: h.reply(s) for method, status in wrong.items()})  # type: ignore[misc]
    with bad_storage(pki, dav) as server:
        assert carrier.send(server.url()) == {"lfn": "a", **KNOWN}
    assert dav.files == {"/d/a": CONTENT}


def test_a_signed_url_is_used_as_it_is(carrier: Carrier, pki: Pki) -> None:
    (carrier.sandbox / "a").write_bytes(CONTENT)
    dav = Dav()
    with bad_storage(pki, dav) as server:
        assert carrier.send(server.url("d/a?signature=x"))["size"] == len(CONTENT)
        assert server.methods == ["PUT", "HEAD", "GET"]
    assert dav.files == {"/d/a?signature=x": CONTENT}


def test_a_door_sends_the_body_elsewhere_and_gets_none_of_it(carrier: Carrier, pki: Pki) -> None:
    (carrier.sandbox / "a").write_bytes(CONTENT)
    kept = Dav()
    with ExitStack() as stack:
        pool = stack.enter_context(bad_storage(pki, kept))
        to_pool: Script = lambda h: h.reply(307, Location=pool.url("pool/a"))  # noqa: E731
        wrong = dict.fromkeys(("PUT", "GET", "HEAD"), to_pool)
        door = stack.enter_context(bad_storage(pki, Dav(MOVE=lambda h: h.reply(201), **wrong)))
        door.reads = door.continues = False
        assert carrier.send(door.url()) == {"lfn": "a", **KNOWN}
        assert door.methods == ["OPTIONS", "PUT", "HEAD", "GET", "MOVE"]
        assert {each.peer for each in pool.seen} == {""}
    assert kept.files == {"/pool/a": CONTENT}


def test_a_server_that_says_nothing_before_the_body_gets_it_after_a_while(quick: Carrier, pki: Pki) -> None:
    (quick.sandbox / "a").write_bytes(CONTENT)
    with bad_storage(pki, Dav()) as server:
        server.continues = False  # it waits for the body at once
        assert quick.send(server.url())["size"] == len(CONTENT)


@pytest.mark.parametrize("status", [201, 413])
def test_who_answers_without_taking_the_file_does_not_have_it(carrier: Carrier, pki: Pki, status: int) -> None:
    with (carrier.sandbox / "a").open("wb") as file:
        file.truncate(50 * 2**20)

    def hasty(handler: Handler) -> None:
        dav.files[handler.path] = handler.rfile.read(10)
        handler.wfile.write(b"HTTP/1.1 %d So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        handler.close_connection = True

    dav = Dav(PUT=hasty)
    with bad_storage(pki, dav) as server:
        server.reads = False
        said = carrier.send(server.url())
        assert said["why"] in ({201: ("broken",), 413: ("refused", "broken")}[status]), said
        assert server.methods == ["OPTIONS", "PUT", "DELETE"]


def test_an_output_that_grows_while_it_is_sent_is_not_kept(carrier: Carrier, pki: Pki) -> None:
    path = carrier.sandbox / "a"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)
    dav = Dav()
    with bad_storage(pki, dav) as server:
        process = carrier.start([Transfer("a", "out", server.url(), ".out.part")])
        while "PUT" not in server.methods and process.poll() is None:
            with path.open("ab") as file:
                file.write(b"more")
            time.sleep(0.005)
        out, _ = process.communicate(timeout=60)
    assert '"changed"' in out, out
    assert dav.files == {}
