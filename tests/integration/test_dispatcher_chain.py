"""The verbs in the order of a job's life, over HTTP, on a real database."""

from __future__ import annotations

import hashlib
import zlib

import pytest
from support.dispatcher import ALICE_DN, World, job_database, spec, template_database, ti, world
from support.postgres import postgres

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration

SWITCHED = {
    "node": "wn1",
    "pilot_uid": 61001,
    "account_name": "alice",
    "account_uid": 61012,
    "identity_switched": True,
}


async def test_a_job_from_submission_to_its_output(world: World) -> None:
    credential = await world.credential(passphrase="correct-horse-battery-staple")
    task = await world.submit(
        jobs=[spec(outputs=[{"lfn": "hist.json", "access": "vo"}], argv=["python3", "run.py"])],
        credential_id=credential["credential_id"],
    )
    assert (task["created"], task["n_jobs"]) == (True, 1)
    pilot = await world.pilot()
    started = await pilot.post("update_worker_status", {"status": "started", "node": "wn1", "probe": {"ok": True}})
    assert started.json() == {"command": ""}

    (job,) = await pilot.acquire()
    assert job["panda_id"] == task["first_panda_id"]
    assert job["owner_dn"] == job["credential"]["owner_dn"] == ALICE_DN
    assert job["credential"]["passphrase"] == "correct-horse-battery-staple"
    assert job["spec"]["argv"] == ["python3", "run.py"]
    assert await pilot.acquire() == []

    await pilot.good_report(job, "starting", "running", credential_event="retrieved", **SWITCHED)
    await pilot.good_report(job, "running", log_tail="event 1\n", use={"wall_s": 1, "cpu_s": 1, "max_rss_mib": 20})
    assert (await world.call("GET", f"/v1/job/{job['panda_id']}/log")).text == "event 1\n"

    assert (await pilot.put(job, "hist.json", b"{}")).status_code == 201
    assert (await pilot.put(job, "payload.log", b"event 1\nevent 2\n")).status_code == 201
    use = {"wall_s": 2.5, "cpu_s": 2, "max_rss_mib": 30}
    await pilot.good_report(job, "finished", trans_exit_code=0, use=use)

    progress = await world.good("GET", f"/v1/task/{task['task_id']}/progress")
    ended = {"counts": {"finished": 1}, "total": 1, "done": True, "note": "", "suspected": 0}
    assert progress == {"task_id": task["task_id"]} | ended
    view = await world.job(job["panda_id"])
    (attempt,) = view["attempts"]
    assert attempt["account_uid"] == 61012
    assert attempt["identity_switched"] is True
    assert (attempt["status"], attempt["exit_code"], attempt["wall_s"]) == ("finished", 0, 2.5)
    assert view["outputs"][0] == {
        "lfn": "hist.json",
        "source": f"panda:{job['panda_id']}/hist.json",
        "size": 2,
        "sha256": hashlib.sha256(b"{}").hexdigest(),
        "adler32": f"{zlib.adler32(b'{}'):08x}",
        "access": "vo",
        "url": "",
    }
    assert (await world.call("GET", f"/v1/job/{job['panda_id']}/log")).text == "event 1\nevent 2\n"
    assert (await world.call("GET", f"/v1/file/{job['panda_id']}/hist.json")).content == b"{}"

    audit = await world.good("GET", "/v1/creds/audit", params={"owner_dn": ALICE_DN})
    assert [entry["action"] for entry in audit] == ["retrieved", "released", "consented", "staged"]
    assert audit[1] | {"at": ""} == {
        "at": "",
        "action": "released",
        "credential_id": credential["credential_id"],
        "owner_dn": ALICE_DN,
        "actor": f"pilot:{pilot.pilot_id}",
        "panda_id": job["panda_id"],
        "attempt_nr": 1,
        "pilot_id": pilot.pilot_id,
        "node": "wn1.example.org",
        "detail": "",
    }


async def test_outputs_become_inputs_of_the_vo_and_of_nobody_else(world: World) -> None:
    pilot = await world.pilot()
    first = await world.submit(jobs=[spec(outputs=[{"lfn": "shared", "access": "vo"}, {"lfn": "own"}])])
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    for lfn in ("shared", "own"):
        await pilot.put(job, lfn, lfn.encode())
    await pilot.good_report(job, "finished")

    source = f"panda:{first['first_panda_id']}"
    inputs = [{"lfn": "a", "source": f"{source}/shared"}, {"lfn": "b", "source": f"{source}/own"}]
    expected = {"bob": (200, 403), "eve": (403, 403), "alice": (200, 200)}
    for owner, fqans in (("bob", ["/test"]), ("eve", ["/other/test"]), ("alice", [])):
        dn = ALICE_DN if owner == "alice" else f"/O=Test Grid/CN={owner}"
        credential = await world.credential(owner, dn, fqans=fqans)
        await world.submit(owner=owner, credential_id=credential["credential_id"], jobs=[spec(inputs=inputs)])
        (reader,) = await pilot.acquire()
        answers = [await pilot.get_input(reader, lfn) for lfn in ("a", "b")]
        assert tuple(answer.status_code for answer in answers) == expected[owner]
        if answers[0].status_code == 200:
            assert answers[0].content == b"shared"
            assert answers[0].headers["X-Airpanda-Sha256"] == hashlib.sha256(b"shared").hexdigest()
        assert (await pilot.get_input(reader, "c")).status_code == 404


async def test_batches_remember_what_was_submitted(world: World) -> None:
    batch = await world.good("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 3, "ti": ti()})
    ids = [each["pilot_id"] for each in batch["pilots"]]
    assert len({each["token"] for each in batch["pilots"]}) == 3
    record = {"state": "submitted", "ce": "local", "handles": {str(ids[0]): "101", str(ids[1]): "102"}}
    for _repeat in range(2):
        view = await world.good("POST", f"/v1/batch/{batch['batch_id']}/record", record)
        assert [pilot["state"] for pilot in view["pilots"]] == ["submitted", "submitted", "failed"]
        assert [pilot["ce_job_id"] for pilot in view["pilots"]] == ["101", "102", ""]
    assert await world.good("GET", f"/v1/batch/{batch['batch_id']}") == view
