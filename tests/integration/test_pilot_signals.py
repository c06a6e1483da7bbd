"""Signals of batch systems, to real pilots with switched payloads: report, save, clean, within the grace time."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import time
from pathlib import Path

import pytest
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, PILOT_UID, wait_for
from support.node_processes import pilots_of, processes_of
from support.pilot_chain import PILOTS, Chain, chain, myproxy, site
from support.postgres import postgres

from airpanda.computing.elements import PilotJobState

__all__ = ["chain", "job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]

SIGNALS = {
    signal.SIGTERM: 1201,
    signal.SIGQUIT: 1202,
    signal.SIGXCPU: 1204,
    signal.SIGUSR1: 1207,
    signal.SIGUSR2: 1207,
    signal.SIGINT: 1208,
}
GRACE_S = 10.0  # [pilot] kill_grace_s
# It says what it got, and goes on as if nothing had been.
STUBBORN = "trap 'echo got TERM' TERM; echo begun; while :; do sleep 0.2; done"


def kept(chain: Chain, panda_id: int, lfn: str) -> bytes:
    """A log of the first attempt, straight from the store: the dispatcher shows that of the latest one."""
    query = f"SELECT blob FROM panda_file WHERE panda_id = {panda_id} AND attempt_nr = 1 AND lfn = '{lfn}'"
    ((blob,),) = chain.sql(query)
    return (chain.file_store / blob).read_bytes()


def test_each_signal_is_reported_with_its_own_code_and_leaves_nothing(chain: Chain) -> None:
    """Six pilots with a payload that will not stop; each gets another signal; a job goes on somewhere else."""
    jobs = [spec(f"j{i}", argv=["sh", "-c", STUBBORN], walltime_s=600) for i in range(len(SIGNALS))]
    task = chain.submit("alice", *jobs)
    handles = chain.send_pilots(len(SIGNALS))
    progress = f"/v1/task/{task['task_id']}/progress"
    wait_for(lambda: chain.call("GET", progress)["counts"].get("running") == len(SIGNALS), 120)
    time.sleep(1.0)
    begin = time.monotonic()
    for pid, number in zip(pilots_of(chain.site, PILOT_UID), SIGNALS, strict=True):
        os.kill(pid, number)
    wait_for(lambda: not pilots_of(chain.site, PILOT_UID), 90)
    took_s = time.monotonic() - begin
    assert GRACE_S < took_s < GRACE_S + 30, "the payloads were stubborn, and the pilots quick after that"
    assert chain.pilots_end(handles) == {PilotJobState.FAILED}
    codes = []
    for job in chain.jobs(task["task_id"]):
        (attempt,) = [one for one in job["attempts"] if one["attempt_nr"] == 1]
        (error,) = attempt["errors"]
        assert error["blame"] == "site"
        codes.append(error["code"])
        assert (attempt["status"], attempt["exit_code"]) == ("failed", 137)
        assert job["status"] == "activated", "a pilot's end costs the job's owner nothing"
        assert kept(chain, job["panda_id"], "payload.log") == b"begun\ngot TERM\n"
        with tarfile.open(fileobj=io.BytesIO(kept(chain, job["panda_id"], "pilot-log.tgz"))) as tar:
            told = tar.extractfile("job.json")
            assert told is not None
            assert json.load(told)["errors"][0]["code"] == error["code"]
    assert sorted(codes) == sorted(SIGNALS.values())
    reasons = [reason for (reason,) in chain.sql("SELECT reason FROM panda_pilot")]
    assert sorted(reasons) == sorted(f"ended by signal {int(number)}" for number in SIGNALS)
    inside = chain.site.node.path(Path(PILOTS))
    assert processes_of(chain.site, ALICE_UID) == []
    assert [path for path in inside.glob(".*") if path.is_dir()] == []
    assert list(inside.glob("*/job-*")) == []
    chain.call("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "the test is over"})
