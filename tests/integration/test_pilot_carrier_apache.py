"""The carrier and Debian's Apache with mod_dav: plain WebDAV, without checksums and without proxies."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.apache import Apache, apache
from support.carrier import Carrier
from support.pki import Pki, pki

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


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[Apache]:
    with apache(pki) as running:
        yield running


@pytest.fixture
def carrier(tmp_path: Path, pki: Pki) -> Carrier:
    owner = ProxyCredential.from_files(*pki.user("alice"))
    create_proxy(owner, lifetime=timedelta(hours=1), now=datetime.now(UTC)).write(tmp_path / "proxy")
    made = Carrier(tmp_path, ca_dir=pki.ca_dir, proxy=tmp_path / "proxy")
    (made.sandbox / "a").write_bytes(CONTENT)
    return made


def test_a_server_that_knows_no_proxies_is_told_as_the_proxys_refusal(carrier: Carrier, pki: Pki) -> None:
    with apache(pki, verify="require") as strict:
        assert carrier.fetch(strict.url("d/x"), "b")["why"] == "credential"
        assert strict.methods == []


def test_what_cannot_be_put_there_is_named_and_leaves_nothing(carrier: Carrier, server: Apache) -> None:
    assert carrier.send(server.url("d/closed/a"))["why"] == "refused"
    assert carrier.send(server.url("d/nowhere/a"))["why"] == "missing", "409: it makes no collections by itself"
    assert carrier.send(server.url("beside"))["why"] == "protocol", "405: no WebDAV there"
    assert carrier.send(server.url("d"))["why"] in ("protocol", "missing", "refused"), "a collection has that name"
    assert [path.name for path in server.files.iterdir()] == ["closed"]
    assert carrier.fetch(server.url("d/nothing"), "b")["why"] == "missing"


def test_a_collection_is_not_replaced_with_all_that_is_in_it(carrier: Carrier, server: Apache) -> None:
    (server.files / "results").mkdir()
    (server.files / "results" / "precious").write_bytes(b"years of work")
    (server.files / "results" / "precious").chmod(0o644)
    if os.geteuid() == 0:
        shutil.chown(server.files / "results", "www-data")
    try:
        assert carrier.send(server.url("d/results"))["why"] == "not-a-file"
        assert os.listdir(server.files / "results") == ["precious"]
        assert sorted(path.name for path in server.files.iterdir()) == ["closed", "results"]
    finally:
        shutil.rmtree(server.files / "results")


def test_an_output_without_a_checksum_is_read_back_before_it_gets_its_name(carrier: Carrier, server: Apache) -> None:
    (server.files / "a").write_bytes(b"of an earlier attempt")
    before = len(server.methods)
    assert carrier.send(server.url("d/a")) == {"lfn": "a", **KNOWN}
    assert (server.files / "a").read_bytes() == CONTENT
    assert sorted(path.name for path in server.files.iterdir()) == ["a", "closed"]
    assert server.methods[before:] == ["OPTIONS", "PUT", "HEAD", "GET", "MOVE", "PROPFIND", "MOVE"]
    assert carrier.fetch(server.url("d/a"), "b", **KNOWN) == {"lfn": "b", **KNOWN}
    assert carrier.left() == ["a", "b"]
    (server.files / "a").unlink()
