"""Everything real but Airflow: PostgreSQL, gateway over mutual TLS, MyProxy, submission, pilots, launcher, accounts."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID, wait_for
from support.node_processes import kill_pilots, processes_of
from support.pilot_chain import WRAPPER, Chain, chain, check_launchers_record, myproxy, site
from support.postgres import postgres

from airpanda.computing.elements import PilotJobState, make_element

__all__ = ["chain", "job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]


def test_three_pilots_run_two_owners_jobs_each_exactly_once(chain: Chain) -> None:
    script = "id -u > out.txt"
    job = {"argv": ["sh", "-c", script], "outputs": [{"lfn": "out.txt", "access": "vo"}]}
    alice = chain.submit("alice", *[spec(f"a{i}", **job) for i in range(8)])
    bob = chain.submit("bob", *[spec(f"b{i}", **job) for i in range(4)])
    handles = chain.send_pilots(3)
    assert chain.wait(alice["task_id"]) == {"finished": 8}, chain.logs(handles)
    assert chain.wait(bob["task_id"]) == {"finished": 4}, chain.logs(handles)
    for task, uid in ((alice, ALICE_UID), (bob, BOB_UID)):
        for one in chain.jobs(task["task_id"]):
            (attempt,) = one["attempts"]
            assert (attempt["account_uid"], attempt["pilot_uid"]) == (uid, PILOT_UID)
            assert attempt["identity_switched"] is True
            check_launchers_record(chain, one, attempt)
            assert chain.http.get(f"/v1/file/{one['panda_id']}/out.txt").text == f"{uid}\n"
    first = alice["first_panda_id"]
    reader = spec("reader", argv=["sh", "-c", "cat *.txt"])
    reader["inputs"] = [{"lfn": f"in{i}.txt", "source": f"panda:{first + i}/out.txt"} for i in range(3)]
    analysis = chain.submit("bob", reader)
    theirs = chain.submit(
        "alice", spec("private", argv=["true"], inputs=[{"lfn": "x", "source": f"panda:{first + 9}/no"}])
    )
    assert chain.wait(analysis["task_id"]) == {"finished": 1}, chain.logs(handles)
    log = chain.http.get(f"/v1/job/{analysis['first_panda_id']}/log").text
    assert log == f"{ALICE_UID}\n" * 3
    assert chain.wait(theirs["task_id"]) == {"failed": 1}
    assert len(chain.jobs(theirs["task_id"])[0]["attempts"]) == 3, "charged to its owner, three times at most"
    events = Counter(
        row["action"]
        for who in ("alice", "bob")
        for row in chain.call("GET", f"/v1/creds/audit?owner_dn={chain.site.pki.dn(who)}&limit=1000")
    )
    assert events["released"] == events["retrieved"] == 16
    assert chain.pilots_end(handles) == {PilotJobState.DONE}
    show_overhead(chain)


def show_overhead(chain: Chain) -> None:
    """Seconds of an attempt that are neither payload nor waiting, from the status log; printed, never judged."""
    rows = chain.sql("SELECT panda_id, new_status, at FROM panda_job_status_log ORDER BY log_id")
    times: dict[int, dict[str, Any]] = {}
    for panda_id, status, at in rows:
        times.setdefault(panda_id, {})[status] = at
    for name, a, b in (("sent to running", "sent", "running"), ("running to finished", "running", "finished")):
        seconds = sorted((t[b] - t[a]).total_seconds() for t in times.values() if a in t and b in t)
        print(f"{name}: median {seconds[len(seconds) // 2]:.3f} s, worst {seconds[-1]:.3f} s of {len(seconds)}")


def test_a_killed_pilots_job_is_done_by_another_one_uncharged(chain: Chain) -> None:
    task = chain.submit("alice", spec("long", argv=["sh", "-c", "sleep 4; echo done"], max_attempt=1))
    handles = chain.send_pilots(1)
    wait_for(lambda: chain.call("GET", f"/v1/task/{task['task_id']}/progress")["counts"].get("running"), 60)
    kill_pilots(chain.site, PILOT_UID)
    # Its lease ends first, for which an idle pilot would not wait.
    wait_for(lambda: chain.jobs(task["task_id"])[0]["status"] == "activated", 120)
    handles += chain.send_pilots(1)
    assert chain.wait(task["task_id"]) == {"finished": 1}, chain.logs(handles)
    (job,) = chain.jobs(task["task_id"])
    assert [attempt["status"] for attempt in job["attempts"]] == ["finished", "failed"]
    assert job["attempts"][1]["errors"][0]["code"] == 100
    wait_for(lambda: not processes_of(chain.site, ALICE_UID), 20)
    assert chain.pilots_end(handles) == {PilotJobState.FAILED, PilotJobState.DONE}


def test_killing_the_task_ends_the_payload(chain: Chain) -> None:
    task = chain.submit("bob", spec("long", argv=["sleep", "60"]), spec("waiting", argv=["sleep", "60"]))
    handles = chain.send_pilots(1)
    wait_for(lambda: chain.call("GET", f"/v1/task/{task['task_id']}/progress")["counts"].get("running"), 60)
    begin = time.monotonic()
    chain.call("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "a test"})
    assert chain.wait(task["task_id"]) == {"cancelled": 2}, chain.logs(handles)
    assert time.monotonic() - begin < 55, "it would have slept for longer"
    assert processes_of(chain.site, BOB_UID) == []
    make_element(chain.queue, WRAPPER).cancel(handles)
    chain.pilots_end(handles)
