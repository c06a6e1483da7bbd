"""Files at URLs through everything real: dispatcher, pilot, launcher, accounts, MyProxy, a grid storage."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.bad_storage import bad_storage
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, BOB_UID, Site, wait_for
from support.node_processes import command_of, processes_of
from support.pilot_chain import Chain, chain, myproxy, site
from support.postgres import postgres
from support.storage import Storage, storage

__all__ = ["chain", "job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]

CONTENT = b"0123456789abcde\n" * 5000
KNOWN = {"adler32": f"{zlib.adler32(CONTENT):08x}", "sha256": hashlib.sha256(CONTENT).hexdigest()}
SECRET = "what only Alice may read"


@pytest.fixture(scope="module", name="server")
def _server(site: Site) -> Iterator[Storage]:
    with storage(site.pki, {"alice": "a", "bob": "lr"}) as running:
        yield running


@pytest.fixture(name="se")
def _se(server: Storage) -> Storage:
    """The storage with one file."""
    for path in server.files.iterdir():
        path.unlink()
    server.write("data", CONTENT)
    return server


def run(chain: Chain, who: str, *jobs: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The jobs as they end, in the order of submission, and what the pilots have logged."""
    task = chain.submit(who, *jobs)
    handles = chain.send_pilots(1)
    chain.wait(task["task_id"])
    ended = sorted(chain.jobs(task["task_id"]), key=lambda job: int(job["panda_id"]))
    return ended, chain.logs(handles)


def one_try(name: str, **more: Any) -> dict[str, Any]:
    return spec(name, max_attempt=1, **more)


def first_error(job: dict[str, Any]) -> tuple[int, str, str]:
    error = job["attempts"][0]["errors"][0]
    return error["code"], error["blame"], error["diag"]


def test_files_are_opened_with_their_owners_rights_and_no_others(chain: Chain) -> None:
    site = chain.site
    alices = site.directory(ALICE_UID)
    secret = site.put(SECRET.encode(), uid=ALICE_UID, where=alices)
    open_secret = site.put(SECRET.encode(), uid=ALICE_UID, where=site.directory(ALICE_UID, 0o755))
    bobs = site.directory(BOB_UID)
    site.node.path(bobs / "link").symlink_to(open_secret)
    pilots = site.put(b"the pilot's", where=site.directory(mode=0o755))
    sources = {
        "shadow": ("/etc/shadow", 1338),
        "hidden": (secret, 1338),
        "unreadable": (open_secret, 1338),
        "link": (bobs / "link", 1338),
        "pilots": (pilots, 1338),
        "home": (site.put(b"the pilot's"), 1331),
        "directory": (bobs, 1103),
    }
    jobs = [
        one_try(name, argv=["cat", "x"], inputs=[{"lfn": "x", "source": f"file://{path}"}])
        for name, (path, _) in sources.items()
    ]
    places = {"to alice": alices, "to the pilot": site.directory(), "to root": "/etc", "to nowhere": bobs / "no"}
    for name, place in places.items():
        outputs = [{"lfn": "x", "destination": f"file://{place}/"}]
        jobs.append(one_try(name.replace(" ", "-"), argv=["sh", "-c", "echo x > x"], outputs=outputs))
    ended, log = run(chain, "bob", *jobs)
    told = [first_error(job)[:2] for job in ended]
    assert told == [(code, "user") for _, code in sources.values()] + [(1383, "user")] * 3 + [(1137, "user")], log
    assert all(job["attempts"][0]["exit_code"] is None for job in ended[: len(sources)]), "none of them was started"
    assert SECRET not in str(ended) + log
    assert os.listdir(site.node.path(alices)) == [secret.name]


def test_a_job_gets_its_input_from_a_storage_and_leaves_its_outputs_in_four_places(chain: Chain, se: Storage) -> None:
    place = chain.site.directory(ALICE_UID)
    inputs = [{"lfn": "data", "source": se.davs("data", "https"), "size": len(CONTENT), **KNOWN}]
    outputs = [
        {"lfn": "to-disk", "destination": f"file://{place}/"},
        {"lfn": "to-dav", "destination": se.davs("")},
        {"lfn": "to-xroot", "destination": se.xroot("renamed")},
        {"lfn": "here"},
    ]
    command = "for name in to-disk to-dav to-xroot here; do cp data $name; done; ls -A"
    (job,), log = run(chain, "alice", one_try("copy", argv=["sh", "-c", command], inputs=inputs, outputs=outputs))
    assert job["status"] == "finished", (job["attempts"], log)
    record = {each["lfn"]: each for each in job["outputs"]}
    urls = {"to-disk": f"file://{place}/to-disk", "to-dav": se.davs("to-dav"), "to-xroot": se.xroot("renamed")}
    assert {lfn: each["url"] for lfn, each in record.items()} == {**urls, "here": ""}
    for each in record.values():
        assert (each["size"], each["adler32"], each["sha256"]) == (len(CONTENT), KNOWN["adler32"], KNOWN["sha256"])
    stored = chain.site.node.path(place / "to-disk")
    assert (stored.stat().st_uid, stored.read_bytes()) == (ALICE_UID, CONTENT)
    assert (se.files / "to-dav").read_bytes() == (se.files / "renamed").read_bytes() == CONTENT
    assert se.names() == ["data", "renamed", "to-dav"], "and nothing half of anything"
    assert os.listdir(stored.parent) == ["to-disk"]
    assert chain.http.get(f"/v1/file/{job['panda_id']}/here").content == CONTENT
    assert "login as alice" in se.log
    assert "PRIVATE KEY" not in log + chain.http.get(f"/v1/job/{job['panda_id']}/log").text


def test_an_input_that_has_vanished_fails_the_job_and_is_named(chain: Chain, se: Storage) -> None:
    inputs = [
        {"lfn": "data", "source": se.davs("data")},
        {"lfn": "gone", "source": se.xroot("vanished.root")},
        {"lfn": "other", "source": se.davs("data"), "adler32": "00000001"},
    ]
    (job,), log = run(chain, "alice", one_try("vanished", argv=["true"], inputs=inputs))
    assert job["status"] == "failed", log
    errors = job["attempts"][0]["errors"]
    assert [(each["code"], each["blame"]) for each in errors] == [(1331, "user"), (1171, "user")]
    assert f"gone: {se.xroot('vanished.root')}: " in errors[0]["diag"]
    assert "the owner must act" in errors[0]["diag"]
    assert f"its adler32 is {KNOWN['adler32']}, the declared one is 00000001" in errors[1]["diag"]


def test_another_owners_proxy_does_not_write_where_its_owner_may_not(chain: Chain, se: Storage) -> None:
    outputs = [{"lfn": "x", "destination": se.davs("of-bob")}]
    inputs = [{"lfn": "data", "source": se.xroot("data")}]
    job = one_try("reader", argv=["cp", "data", "x"], inputs=inputs, outputs=outputs)
    (ended,), log = run(chain, "bob", job)
    assert first_error(ended)[:2] == (1383, "user"), log
    assert ended["attempts"][0]["exit_code"] == 0
    assert se.names() == ["data"]


def test_a_transfer_under_way_shows_no_secret_and_ends_with_the_job(chain: Chain) -> None:
    with bad_storage(chain.site.pki, lambda handler: time.sleep(60)) as server:
        inputs = [{"lfn": "data", "source": server.url()}]
        task = chain.submit("alice", spec("hanging", argv=["true"], inputs=inputs))
        handles = chain.send_pilots(1)
        wait_for(lambda: server.seen, 60)
        assert "Alice Example" in server.seen[0].peer
        running = processes_of(chain.site, ALICE_UID)
        assert running, "the transfer is a process of its owner's"
        for pid in running:
            shown = command_of(pid)
            with suppress(OSError):  # a look of the pilot's at the sandbox may have ended
                shown += Path(f"/proc/{pid}/environ").read_bytes()
            assert b"PRIVATE KEY" not in shown
            assert b"CERTIFICATE-----" not in shown
        chain.call("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "a test"})
        assert chain.wait(task["task_id"]) == {"cancelled": 1}, chain.logs(handles)
    wait_for(lambda: not processes_of(chain.site, ALICE_UID), 20)
