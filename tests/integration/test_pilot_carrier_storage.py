"""The carrier and a real grid storage (Debian's XRootD) over ``davs:``, with proxies of several people."""

from __future__ import annotations

import hashlib
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.carrier import Carrier
from support.launcher import wait_for
from support.pki import Pki, pki
from support.storage import Storage, storage

from airpanda.pilot.transfers.plan import Transfer
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

__all__ = ["pki"]
pytestmark = pytest.mark.integration

CONTENT = b"0123456789abcde\n" * 70_000
KNOWN = {
    "size": len(CONTENT),
    "adler32": f"{zlib.adler32(CONTENT):08x}",
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
}
TIMES = {"XRD_CONNECTIONWINDOW": "2", "XRD_REQUESTTIMEOUT": "2", "XRD_STREAMTIMEOUT": "2"}
QUICK = f"from airpanda.pilot.carrier import xroot_scheme as x; x._PATIENCE.update({TIMES})"
As = Callable[..., Carrier]


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[Storage]:
    with storage(pki, {"alice": "a", "bob": "lr"}) as running:
        running.write("data", CONTENT)
        yield running


@pytest.fixture
def as_(tmp_path: Path, pki: Pki) -> As:
    """A carrier with somebody's fresh proxy."""

    def make(
        who: str, *, since: timedelta = timedelta(0), lifetime: timedelta = timedelta(hours=12), **more: str
    ) -> Carrier:
        place = tmp_path / f"{who} {since.total_seconds():.0f}"
        place.mkdir()
        owner = ProxyCredential.from_files(*pki.user(who))
        create_proxy(owner, lifetime=lifetime, now=datetime.now(UTC) + since).write(place / "proxy")
        return Carrier(place, ca_dir=pki.ca_dir, proxy=place / "proxy", **more)

    return make


@pytest.fixture(params=["davs", "root"])
def url(request: pytest.FixtureRequest, server: Storage) -> Callable[[str], str]:
    """The URL of a file in the storage."""
    return {"davs": server.davs, "root": server.xroot}[request.param]


def test_who_may_not_is_refused_by_the_storage_itself(server: Storage, as_: As, url: Callable[[str], str]) -> None:
    stranger = as_("carol")
    assert stranger.fetch(url("data"))["why"] in ("refused", "credential"), "not let in, or not served"
    reader = as_("bob")
    assert reader.fetch(url("data")) == {"lfn": "a", **KNOWN}
    assert reader.send(url("of-bob"))["why"] == "refused"
    assert server.names() == ["data"]


def test_an_expired_proxy_opens_nothing(server: Storage, as_: As, url: Callable[[str], str]) -> None:
    old = as_("alice", since=timedelta(minutes=-3), lifetime=timedelta(minutes=1))
    said = old.fetch(url("data"))
    assert said["why"] in ("credential", "refused"), said
    assert old.left() == []


def test_a_file_that_is_not_there_is_missing(as_: As, url: Callable[[str], str]) -> None:
    carrier = as_("alice")
    assert carrier.fetch(url("nothing"))["why"] == "missing"
    assert carrier.left() == []


def test_an_input_that_is_not_what_was_declared_does_not_arrive(as_: As, url: Callable[[str], str]) -> None:
    carrier = as_("alice")
    for wrong in ({"adler32": "00000001"}, {"size": 5}, {"sha256": "0" * 64}):
        assert carrier.fetch(url("data"), **wrong)["why"] == "mismatch", wrong
    assert carrier.fetch(url("data"), max_bytes=1000)["why"] == "too-large"
    assert carrier.left() == []


def test_a_carrier_that_is_ended_leaves_nothing_by_the_outputs_name(
    server: Storage, as_: As, url: Callable[[str], str]
) -> None:
    carrier = as_("alice")
    with (carrier.sandbox / "a").open("wb") as file:
        file.truncate(2**30)
    with carrier.start([Transfer("a", "out", url("big"), ".out.part")], max_bytes=2**31) as process:
        wait_for(lambda: ".out.part" in server.names() or process.poll() is not None, 90)
        assert process.poll() is None, process.communicate()
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert "big" not in server.names()
    wait_for(lambda: server.names() == ["data"], 40)


def test_a_directory_is_not_replaced(server: Storage, as_: As, url: Callable[[str], str]) -> None:
    (server.files / "results").mkdir()
    server.write("results/precious", b"years of work")
    carrier = as_("alice")
    (carrier.sandbox / "a").write_bytes(CONTENT)
    try:
        assert "why" in carrier.send(url("results"))
        assert [path.name for path in (server.files / "results").iterdir()] == ["precious"]
        assert server.names() == ["data", "results"]
    finally:
        shutil.rmtree(server.files / "results")


def test_files_go_and_come_whole_and_replace_what_was_there(
    server: Storage, as_: As, url: Callable[[str], str]
) -> None:
    carrier = as_("alice")
    server.write("out", b"of an earlier attempt")
    (carrier.sandbox / "a").write_bytes(CONTENT)
    try:
        assert carrier.send(url("out")) == {"lfn": "a", **KNOWN}
        assert (server.files / "out").read_bytes() == CONTENT
        assert server.names() == ["data", "out"]
    finally:
        (server.files / "out").unlink()
    assert carrier.fetch(url("data"), "b", **KNOWN) == {"lfn": "b", **KNOWN}
    assert (carrier.sandbox / "b").read_bytes() == CONTENT
    assert carrier.left() == ["a", "b"]


def test_a_server_that_does_not_answer_or_is_not_there_is_tried_again_later(as_: As) -> None:
    carrier = as_("alice", patch=QUICK)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        assert carrier.fetch(f"root://localhost:{port}//d/a")["why"] in ("timeout", "broken")
    assert carrier.fetch(f"root://localhost:{port}//d/a")["why"] == "broken"


def test_without_the_clients_the_node_cannot(server: Storage, as_: As) -> None:
    said = as_("alice", path="/nowhere").fetch(server.xroot("data"))
    assert (said["why"], said["detail"]) == ("unsupported", "xrdfs is not installed on this node")


@pytest.mark.parametrize("url", ["root://h/d/a", "root://h//d/", "root://h//d/a?authz=x", "root://h"])
def test_a_root_url_names_one_file_by_its_path(as_: As, url: str) -> None:
    assert as_("alice").fetch(url)["why"] == "protocol"


def test_a_server_without_checksums_has_outputs_read_back(server: Storage, as_: As) -> None:
    lost = "from airpanda.pilot.carrier import xroot_scheme as x; x._Place.adler32 = lambda self: None"
    carrier = as_("alice", patch=lost)
    (carrier.sandbox / "a").write_bytes(CONTENT)
    try:
        assert carrier.send(server.xroot("back")) == {"lfn": "a", **KNOWN}
    finally:
        (server.files / "back").unlink(missing_ok=True)
    bad = f"{lost}; x._Place.size = lambda self: {len(CONTENT) + 1}"
    assert as_("bob", patch=bad).fetch(server.xroot("data"))["why"] == "mismatch"


def test_an_empty_file_is_a_file(server: Storage, as_: As, url: Callable[[str], str]) -> None:
    carrier = as_("alice")
    (carrier.sandbox / "a").touch()
    try:
        assert carrier.send(url("empty"))["adler32"] == "00000001"
        assert carrier.fetch(url("empty"), "b")["size"] == 0
    finally:
        (server.files / "empty").unlink(missing_ok=True)


@pytest.mark.parametrize("size", [0, 10])
def test_an_input_that_grows_after_its_size_was_told_does_not_fill_the_scratch(
    server: Storage, as_: As, size: int
) -> None:
    """Not even one that was said to be empty; the size of what the client wrote is noted before it is removed."""
    grows = f"import os; from airpanda.pilot.carrier import xroot_scheme as x; x._Place.size = lambda self: {size}"
    note = "open('note', 'w').write(str(os.path.getsize(name)))"
    carrier = as_(
        "alice", patch=f"{grows}; x.digest_of = lambda file, name, then=x.digest_of: ({note}, then(file, name))[1]"
    )
    assert carrier.fetch(server.xroot("data"))["why"] in ("mismatch", "broken")
    note_file = carrier.sandbox / "note"
    assert not note_file.exists() or int(note_file.read_text()) <= size
