"""What people see of a running job, everything real but Airflow: samples, and answers to their questions."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest
from support.canary import Canaries
from support.dispatcher import job_database, spec, template_database
from support.launcher import wait_for
from support.pilot_chain import Chain, chain, myproxy, site
from support.postgres import postgres

__all__ = ["chain", "job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]


# Eight million bytes written and read back, some CPU; then five processes that share 60 MiB.
BUSY = """
head -c 8000000 /dev/zero > big; cat big > /dev/null
python3 -IS -c 'import mmap, os, time
while os.times().user < 1: pass
shared = mmap.mmap(-1, 60 << 20)
for _ in range(4):
    if os.fork() == 0: break
for i in range(0, len(shared), 4096): shared[i] = 1
time.sleep(14)'
"""


def test_a_switched_payload_is_measured_from_outside(chain: Chain) -> None:
    """CPU, memory and processes by the pilot, bytes moved and what is shared by the launcher, the disk as its owner.

    What its processes have together is over the limit only if what they share counts for each.
    """
    asked = {"walltime_s": 120, "memory_mib": 75}
    task = chain.submit("alice", spec("busy", argv=["sh", "busy.sh"], scripts={"busy.sh": BUSY}, **asked))
    handles = chain.send_pilots(1)
    assert chain.wait(task["task_id"]) == {"finished": 1}, chain.logs(handles)
    samples: list[dict[str, Any]] = chain.call("GET", f"/v1/job/{task['first_panda_id']}/samples")
    assert 5 <= len(samples) <= 60, "the first at once, then every two seconds"
    assert [s["at_s"] for s in samples] == sorted(s["at_s"] for s in samples)
    last = samples[-1]
    assert 0.9 < last["cpu_s"] < 5
    assert 0.5 < samples[0]["rss_mib"] < 25, "the payload's, not the launcher's"
    assert samples[0]["pss_mib"] is None, "the launcher has not looked yet"
    # The last look may come while the payload's processes end one after the other.
    most = {name: max(s[name] or 0 for s in samples) for name in ("rss_mib", "pss_mib", "processes")}
    assert most["rss_mib"] > 300
    assert 60 < most["pss_mib"] < 150
    assert most["processes"] >= 6
    assert 7 < last["read_mib"] < 60
    assert 7 < last["written_mib"] < 60
    assert 7 < last["disk_mib"] < 20
    chain.pilots_end(handles)


def ask(chain: Chain, panda_id: int, what: str) -> str:
    """The answer, once it is there."""
    path = f"/v1/job/{panda_id}/debug"
    chain.call("POST", path, {"what": what})
    answer = wait_for(lambda: (r := chain.http.get(path)).status_code == 200 and r, 30)
    return str(answer.text)


def test_a_person_sees_log_processes_and_files_of_a_switched_payload(chain: Chain) -> None:
    script = "echo from the payload; mkdir d; printf 12345 > d/data; exec sleep 300.5"
    task = chain.submit("bob", spec("asked", argv=["sh", "-c", script], walltime_s=600))
    handles = chain.send_pilots(1)
    progress = f"/v1/task/{task['task_id']}/progress"
    wait_for(lambda: chain.call("GET", progress)["counts"].get("running"), 60)
    panda_id = task["first_panda_id"]
    assert ask(chain, panda_id, "tail").split("\n")[1:] == ["from the payload", ""]
    processes = ask(chain, panda_id, "ps").splitlines()[1:]
    assert processes[0].split()[:3] == ["PID", "PPID", "S"]
    (sleeper,) = [line.split() for line in processes[1:]]
    assert sleeper[-2:] == ["sleep", "300.5"]
    files = [line.split() for line in ask(chain, panda_id, "ls").splitlines()[1:]]
    assert sorted((line[0], line[1], line[-1]) for line in files) == [
        ("-rw-------", "bob", "d/data"),
        ("drwx------", "bob", "d"),
    ]
    chain.call("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "the test is over"})
    assert chain.wait(task["task_id"]) == {"cancelled": 1}
    chain.pilots_end(handles)


def test_the_pilots_log_is_listed_and_holds_no_secret_of_anybody(chain: Chain, canaries: Canaries) -> None:
    """The hunt: tokens, lease, passphrase and keys, which pilot and payload had, are not in what everybody may see."""
    script = 'cat "$X509_USER_PROXY"; cat "$X509_USER_PROXY" > copy'
    task = chain.submit("alice", spec("talks", argv=["sh", "-c", script], walltime_s=120))
    handles = chain.send_pilots(1)
    assert chain.wait(task["task_id"]) == {"finished": 1}, chain.logs(handles)
    (job,) = chain.jobs(task["task_id"])
    assert [file["lfn"] for file in job["logs"]] == ["payload.log", "pilot-log.tgz"]
    assert job["outputs"] == []
    data = chain.http.get(f"/v1/job/{job['panda_id']}/pilot_log").content
    assert len(data) == job["logs"][1]["size"] < 100_000
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        parts = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        texts = {name: file.read() for name, file in parts.items() if file is not None}
    assert b"[private key removed]" in texts["payload-tail.log"], "the payload has shown its own key"
    for name, text in texts.items():
        assert canaries.shown_in(text) == set(), name
        assert b"PRIVATE KEY" not in text, name
        for kind in (b"passphrase", b"Bearer", b"eyJ"):
            assert kind not in text, (name, kind)
    assert b"begins, owner" not in texts["pilot.log"], "that is the loop's, of no single job"
    told = json.loads(texts["job.json"])
    assert (told["account_name"], told["identity_switched"], told["job_status"]) == ("alice", True, "finished")
    assert told["timing_s"]["proxy"] > 0
    chain.pilots_end(handles)
