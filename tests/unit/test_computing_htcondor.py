"""The HTCondor dialect: pure over documented output; and over a real schedd where CONDOR_HOST names a pool."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.computing.batch import make_batch_element
from airpanda.computing.dialects.htcondor import HTCondor
from airpanda.computing.dialects.port import BatchSpec, CEJob, to_error
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
    PilotBatch,
    PilotJobState,
    SubmitUncertainError,
    ThrottledError,
)
from airpanda.computing.queues import parse_queue
from airpanda.core.secret import Secret

CONDOR = HTCondor()
SPEC = BatchSpec(tag="ap-1", copies=3, cores=4, memory_mib=8000, walltime_s=3600)
RECORDED = """\
WARNING: a site's message
[ { "AirpandaTag": "ap-1", "ClusterId": 12, "JobStatus": 2, "ProcId": 0 } , { "AirpandaTag": "ap-1", "ClusterId": 12, \
"HoldReason": "Spooling input data files", "HoldReasonCode": 16, "JobStatus": 5, "ProcId": 1 } , { "AirpandaTag": \
"ap-1", "ClusterId": 12, "HoldReason": "via condor_hold (by user root)", "HoldReasonCode": 1, "JobStatus": 5, \
"ProcId": 2 } , \
{ "ClusterId": 13, "JobStatus": 1, "ProcId": 0 } ]
ap-1/0/exit:0
"""
STUBS = """\
condor_q() {
    case $* in
    *-json*) printf '[\\n{\\n  "ClusterId": 7,\\n  "ProcId": 0\\n}\\n]\\n' ;;
    *) echo 9; echo 7; echo 7 ;;
    esac
}
condor_submit() { cat "$2" >&2; echo "Submitting job(s)"; echo "31.0 - 31.2"; }
condor_rm() { echo "Couldn't find/remove all jobs matching constraint $2" >&2; return 1; }
"""


def run_functions(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    text = f"{CONDOR.functions}\n{STUBS}\n{script}"
    return subprocess.run(["sh", "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=20)


def test_recorded_lists() -> None:
    assert [(job.job, job.index, job.tag, job.state.value) for job in CONDOR.parse_jobs(RECORDED)] == [
        ("12", 0, "ap-1", "running"),
        ("12", 1, "ap-1", "staging"),
        ("12", 2, "ap-1", "held"),
    ]
    assert CONDOR.parse_jobs("[ ]") == CONDOR.parse_jobs("") == CONDOR.parse_jobs("[ {]") == []
    assert "condor_hold" in CONDOR.parse_jobs(RECORDED)[2].reason


@pytest.mark.parametrize(
    ("ad", "state"),
    [
        ({"JobStatus": 1}, PilotJobState.QUEUED),
        (
            {"JobStatus": 3, "RemoveReason": "The job attribute PeriodicRemove expression was TRUE"},
            PilotJobState.TIMEOUT,
        ),
        ({"JobStatus": 3, "RemoveReason": "via condor_rm (by user pilot)"}, PilotJobState.CANCELLED),
        ({"JobStatus": 4, "ExitCode": 0}, PilotJobState.DONE),
        ({"JobStatus": 4, "ExitCode": 7}, PilotJobState.FAILED),
        ({"JobStatus": 6}, PilotJobState.COMPLETING),
        ({"JobStatus": 7}, PilotJobState.HELD),
        ({"JobStatus": 99}, PilotJobState.UNKNOWN),
        ({"JobStatus": "x"}, PilotJobState.UNKNOWN),
        ({}, PilotJobState.UNKNOWN),
    ],
)
def test_states(ad: dict[str, object], state: PilotJobState) -> None:
    import json

    (job,) = CONDOR.parse_jobs(json.dumps([{"ClusterId": 1, "ProcId": 0, "AirpandaTag": "t", **ad}]))
    assert job.state is state


@given(st.text())
def test_any_output_is_read_without_an_error(text: str) -> None:
    assert all(isinstance(job, CEJob) for job in CONDOR.parse_jobs(text))


def test_the_description_of_a_batch() -> None:
    lines = CONDOR.submit_arguments(BatchSpec(**{**vars(SPEC), "options": ('+ProjectName = "x"', "getenv = True")}))
    assert lines[:2] == ('+ProjectName = "x"', "getenv = True")
    assert lines.index("getenv = False") > 1, "ours comes later, and the last one counts"
    assert 'My.AirpandaTag = "ap-1"' in lines
    assert {"request_cpus = 4", "request_memory = 8000MB", "should_transfer_files = NO"} <= set(lines)
    assert lines[-1] == "queue 3"
    with pytest.raises(InvalidDescriptionError, match="no partitions"):
        CONDOR.submit_arguments(BatchSpec(**{**vars(SPEC), "partition": "grid"}))


def test_one_constraint_cancels_all() -> None:
    (constraint,) = CONDOR.cancel_arguments({"12": [3, 0, 1, 2, 7], "13": [0]})
    assert constraint == (
        "(ClusterId == 12 && ((ProcId >= 0 && ProcId <= 3) || ProcId == 7)) || (ClusterId == 13 && (ProcId == 0))"
    )


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("ERROR: Number of submitted jobs would exceed MAX_JOBS_SUBMITTED", ThrottledError),
        ("ERROR: Failed to connect to local queue manager", CEUnavailableError),
        ("Error: Can't find address for schedd", CEUnavailableError),
        ("AUTHENTICATE:1003:Failed to authenticate with any method", CECredentialError),
        ("ERROR: on Line 3 of submit file: Parse error in expression", InvalidDescriptionError),
        ("ERROR: Failed to commit job submission into the queue.", SubmitUncertainError),
        ("something new", CEUnavailableError),
    ],
)
def test_messages_become_errors(said: str, kind: type[ComputingElementError]) -> None:
    assert type(to_error("c", said, CONDOR.errors)) is kind


def test_the_functions_in_a_shell(tmp_path: Path) -> None:
    assert run_functions("list_tag ap-1", tmp_path).stdout == "7\n9\n"
    listed = run_functions("list_jobs", tmp_path).stdout
    assert listed.count("\n") == 1
    done = run_functions("enqueue 'universe = vanilla' 'queue 3'", tmp_path)
    assert done.stdout == "31\n"
    assert done.stderr == "universe = vanilla\nqueue 3\n"
    assert run_functions("dequeue 'ClusterId == 1'", tmp_path).returncode == 0, "what is gone need not be removed"
    refused = "condor_rm() { echo 'Permission denied' >&2; return 1; }; dequeue x"
    assert run_functions(refused, tmp_path).returncode != 0


@pytest.mark.integration
def test_a_real_schedd(open_path: Path) -> None:
    """A batch runs, is found, adopted, and ends; for who has a schedd and a directory that its nodes share."""
    if not os.environ.get("CONDOR_HOST") or shutil.which("condor_submit") is None:
        pytest.skip("NOT TESTED: CONDOR_HOST names no pool, or condor_submit is missing")
    text = f"""
[queue]
name = "CONDOR"
[ce]
kind = "htcondor"
directory = "{os.environ.get("AIRPANDA_SHARED_DIR", open_path)}/pilots"
[pilot]
code = "/nowhere"
dispatcher_url = "https://localhost"
ca_dir = "/nowhere"
proxy = "/nowhere"
"""
    element = make_batch_element(parse_queue(text, "CONDOR.toml"), "echo here; exit 7\n", None)
    batch = PilotBatch(f"ap-test-{os.getpid()}", {pilot: Secret("t") for pilot in (1, 2)})
    handles = list(element.submit(batch).handles.values())
    assert element.submit(batch).adopted == {1, 2}
    assert set(element.find(batch.tag)) == set(handles)
    end = time.monotonic() + 240
    while not all(status.state.is_final for status in element.status(handles).values()):
        assert time.monotonic() < end, element.status(handles)
        time.sleep(5)
    assert {status.exit_code for status in element.status(handles).values()} == {7}
    element.purge(handles)
