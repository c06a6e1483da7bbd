"""What moving files costs: CPU against a bare SHA-256 of the same bytes, and the time of a file of ten bytes.

CPU and not wall-clock time is compared, since the storage of the test shares the machine with the carrier. A small file
costs the start of the carrier and the exchanges with the storage; its launch through a switch is not in it.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bench.record import record
from support.carrier import Carrier
from support.pki import Pki, pki
from support.storage import Storage, storage

from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

__all__ = ["pki"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

BIG, SMALL, TIMES = 512 * 2**20, 10, 7
SCHEMES = ("file", "davs", "root")


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[Storage]:
    with storage(pki, {"alice": "a"}) as running:
        running.write("small", b"x" * SMALL)
        with (running.files / "big").open("wb") as file:
            for _ in range(BIG >> 20):
                file.write(os.urandom(2**20))
        yield running


@pytest.fixture
def carrier(tmp_path: Path, pki: Pki) -> Carrier:
    owner = ProxyCredential.from_files(*pki.user("alice"))
    create_proxy(owner, lifetime=timedelta(hours=2), now=datetime.now(UTC)).write(tmp_path / "proxy")
    return Carrier(tmp_path, ca_dir=pki.ca_dir, proxy=tmp_path / "proxy")


def url(server: Storage, scheme: str, name: str) -> str:
    return {"file": f"file://{server.files / name}", "davs": server.davs(name), "root": server.xroot(name)}[scheme]


def cost(act: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of wall-clock and of CPU that children have used."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    act()
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def good(said: dict[str, Any]) -> None:
    assert "why" not in said, said


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_small_file(server: Storage, carrier: Carrier, scheme: str) -> None:
    walls = [cost(lambda: good(carrier.fetch(url(server, scheme, "small"))))[0] for _ in range(TIMES)]
    median = statistics.median(walls)
    record(f"transfers: 10 bytes by {scheme}", median, "s", conditions=f"median of {TIMES}, carrier's start included")
    print(f"{scheme}: 10 bytes in {median:.3f} s, worst {max(walls):.3f} s")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_big_file_both_ways(server: Storage, carrier: Carrier, scheme: str) -> None:
    _, bare_s = cost(lambda: subprocess.run(["sha256sum", server.files / "big"], check=True, capture_output=True))
    ways: dict[str, Callable[[], None]] = {
        "in": lambda: good(carrier.fetch(url(server, scheme, "big"))),
        "out": lambda: good(carrier.send(url(server, scheme, "back"))),
    }
    for way, act in ways.items():
        wall_s, cpu_s = cost(act)
        conditions = f"{BIG >> 20} MiB, Adler-32 and SHA-256; storage on the same machine"
        against = {"sha256sum, CPU s": round(bare_s, 2)}
        record(
            f"transfers: CPU {way} by {scheme}:",
            cpu_s,
            "s",
            against=against,
            ratio=cpu_s / bare_s,
            conditions=conditions,
        )
        print(f"{scheme} {way}: {BIG / 1e6 / wall_s:.0f} MB/s, CPU {cpu_s:.2f} s, sha256sum alone {bare_s:.2f} s")
    (server.files / "back").unlink()
