"""Uploads and downloads: nothing half, nothing wrong, nothing undeclared becomes visible."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.dispatcher import Pilot, World, job_database, spec, template_database, world
from support.postgres import postgres

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration


async def running_job(world: World) -> tuple[Pilot, dict[str, Any]]:
    await world.submit(jobs=[spec(outputs=[{"lfn": "out"}])])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    return pilot, job


def blobs(world: World) -> list[Path]:
    return [path for path in world.settings.file_store.rglob("*") if path.is_file()]


async def test_files_are_private_and_a_repeat_replaces(world: World) -> None:
    pilot, job = await running_job(world)
    for content in (b"first", b"second", b"second"):
        stored = await pilot.put(job, "out", content)
        assert (stored.status_code, stored.json()["size"]) == (201, len(content))
        (blob,) = blobs(world)
        assert blob.read_bytes() == content
        assert blob.stat().st_mode & 0o777 == 0o600
        assert blob.parent.stat().st_mode & 0o077 == 0
    hidden = await world.call("GET", f"/v1/file/{job['panda_id']}/out")
    assert hidden.status_code == 404
    await pilot.good_report(job, "finished")
    shown = await world.call("GET", f"/v1/file/{job['panda_id']}/out")
    assert shown.content == b"second"
    assert shown.headers["content-disposition"].startswith("attachment")


async def test_a_wrong_checksum_leaves_nothing(world: World) -> None:
    pilot, job = await running_job(world)
    await pilot.put(job, "out", b"good")
    refused = await pilot.put(job, "out", b"bad", X_Airpanda_Sha256=hashlib.sha256(b"other").hexdigest())
    assert (refused.status_code, "SHA-256" in refused.text) == (400, True)
    (blob,) = blobs(world)
    assert blob.read_bytes() == b"good"


async def test_a_full_disk_is_said_and_the_upload_can_be_repeated(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit on this process's files stands for it: the kernel refuses the same writes."""
    pilot, job = await running_job(world)
    content = os.urandom(world.settings.max_upload_bytes)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) - 1, before[1]))
    try:
        refused = await pilot.put(job, "out", content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "60")
    assert "the file store takes nothing now (File too large)" in refused.json()["detail"]
    assert "operators must make room" in refused.json()["detail"]
    assert str(world.settings.file_store) not in refused.text
    assert "the file store takes nothing" in caplog.text
    assert "airpanda_unavailable_total 1.0" in (await world.call("GET", "/v1/metrics")).text
    assert blobs(world) == []
    assert (await pilot.put(job, "out", content)).status_code == 201


@pytest.mark.parametrize("lfn", ["undeclared", "payload.lo", ".hidden", "..%2f..%2fetc%2fpasswd", "a%00b", "x" * 300])
async def test_undeclared_names_are_refused(world: World, lfn: str) -> None:
    pilot, job = await running_job(world)
    assert (await pilot.put(job, lfn, b"x")).status_code in (404, 422)
    assert blobs(world) == []


async def test_too_long_files_are_refused_announced_or_not(world: World) -> None:
    pilot, job = await running_job(world)
    long = b"x" * (world.settings.max_upload_bytes + 1)
    assert (await pilot.put(job, "out", long)).status_code == 413

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield long[: len(long) // 2]

    headers = pilot.headers | {"X-Airpanda-Lease": job["token"], "X-Airpanda-Sha256": "0" * 64}
    path = f"/v1/pilot/file/{job['panda_id']}/{job['attempt_nr']}/out"
    refused = await world.http.put(path, content=chunks(), headers=headers)
    assert (refused.status_code, refused.headers["content-type"]) == (413, "application/problem+json")
    assert blobs(world) == []


async def test_only_the_lease_opens_files(world: World) -> None:
    pilot, job = await running_job(world)
    stranger = await world.pilot()
    for other, change in ((stranger, {}), (pilot, {"token": "wrong"}), (pilot, {"attempt_nr": 2})):
        refused = await other.put(job | change, "out", b"x")
        assert refused.json()["code"] == "stale-report"
    await world.submit(jobs=[spec(inputs=[{"lfn": "in", "source": f"panda:{job['panda_id']}/out"}])])
    (reader,) = await stranger.acquire()
    assert (await pilot.get_input(reader, "in")).json()["code"] == "stale-report"
    assert (await stranger.get_input(reader, "in")).status_code == 404  # not finished yet
    await pilot.put(job, "out", b"data")
    await pilot.good_report(job, "finished")
    assert (await stranger.get_input(reader, "in")).content == b"data"
    assert (await pilot.put(job, "out", b"late")).json()["code"] == "stale-report"


@pytest.mark.parametrize(
    ("lfn", "path"), [("out", "file/{}/out"), ("payload.log", "job/{}/log"), ("pilot-log.tgz", "job/{}/pilot_log")]
)
async def test_content_that_is_gone_is_said(world: World, lfn: str, path: str) -> None:
    pilot, job = await running_job(world)
    for each in ("out", lfn):
        await pilot.put(job, each, b"data")
    await pilot.good_report(job, "finished")
    for blob in blobs(world):
        blob.unlink()
    gone = await world.call("GET", f"/v1/{path.format(job['panda_id'])}")
    assert (gone.status_code, gone.json()["code"]) == (409, "conflict")
    assert f"panda:{job['panda_id']}/{lfn} is on record, but its content is gone" in gone.json()["detail"]


async def test_a_long_log_shows_its_end(world: World) -> None:
    pilot, job = await running_job(world)
    log = b"a" * (world.settings.max_upload_bytes - 5) + b"\xff end"
    assert (await pilot.put(job, "payload.log", log)).status_code == 201
    shown = await world.call("GET", f"/v1/job/{job['panda_id']}/log")
    assert shown.headers["content-type"].startswith("text/plain")
    assert shown.text.endswith("\ufffd end")
