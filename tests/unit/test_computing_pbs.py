"""The PBS dialect: pure over output as documented; no PBS server was there to run against."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.computing.dialects.pbs import PBS
from airpanda.computing.dialects.port import BatchSpec, CEJob, to_error
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
    PilotJobState,
    SubmitUncertainError,
    ThrottledError,
)

DIALECT = PBS()
SPEC = BatchSpec(tag="ap-1", copies=3, cores=4, memory_mib=8000, walltime_s=3600, partition="grid")
JOBS = {
    "12[].pbs1": {"Job_Name": "airpanda.ap-1", "job_state": "B", "array": True},
    "12[0].pbs1": {"Job_Name": "airpanda.ap-1", "job_state": "R"},
    "12[1].pbs1": {"Job_Name": "airpanda.ap-1", "job_state": "X", "Exit_status": 0},
    "12[2].pbs1": {"Job_Name": "airpanda.ap-1", "job_state": "X", "Exit_status": 7},
    "13.pbs1.example.org": {"Job_Name": "airpanda.one", "job_state": "Q", "comment": "Not Running:\n too busy"},
    "14.pbs1": {"Job_Name": "other", "job_state": "R"},
}
STUBS = """\
qselect() { case $* in *-N*) printf '12[].pbs1\\n' ;; *) printf '12[].pbs1\\n13.pbs1\\n' ;; esac; }
xargs() { cat >/dev/null; "$@"; }
qstat() {
    case $* in
    *json*) printf '{\\n "Jobs": {\\n }\\n}\\n' ;;
    *) printf 'Job Id: 12[].pbs1|Job_Name=airpanda.a|job_state=B\\nJob Id: 12[0].pbs1|Job_Name=airpanda.a|x=y\\n'
       printf 'Job Id: 13.pbs1|Job_Name=airpanda.b|x=y\\nJob Id: 14.pbs1|Job_Name=else|x=y\\n' ;;
    esac
}
qdel() { echo "qdel: Unknown Job Id $1" >&2; return 153; }
qsub() { echo "$*" >&2; echo "12[].pbs1"; }
"""


def run_functions(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    text = f"{DIALECT.functions}\n{STUBS}\n{script}"
    return subprocess.run(["sh", "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=20)


def test_documented_lists() -> None:
    text = f"a site's warning\n{json.dumps({'pbs_version': '23.06.06', 'Jobs': JOBS})}\nap-1/0/exit:0\n"
    assert [(job.job, job.index, job.tag, job.state.value) for job in DIALECT.parse_jobs(text)] == [
        ("12[].pbs1", None, "ap-1", "queued"),
        ("12[].pbs1", 0, "ap-1", "running"),
        ("12[].pbs1", 1, "ap-1", "done"),
        ("12[].pbs1", 2, "ap-1", "failed"),
        ("13.pbs1.example.org", 0, "one", "queued"),
    ]
    assert DIALECT.parse_jobs('{"Jobs": [1]}') == DIALECT.parse_jobs('{"Jobs": {"x": 1, "1.s": 2}}') == []


@pytest.mark.parametrize(
    ("ad", "state"),
    [
        ({"job_state": "H"}, PilotJobState.HELD),
        ({"job_state": "E"}, PilotJobState.COMPLETING),
        ({"job_state": "F", "Exit_status": 271}, PilotJobState.CANCELLED),
        ({"job_state": "F", "Exit_status": 271, "comment": "exceeded walltime"}, PilotJobState.TIMEOUT),
        ({"job_state": "F", "Exit_status": -29, "comment": "walltime limit"}, PilotJobState.TIMEOUT),
        ({"job_state": "F", "Exit_status": 7, "comment": "started at walltime 0"}, PilotJobState.FAILED),
        ({"job_state": "F"}, PilotJobState.CANCELLED),
        ({"job_state": "?"}, PilotJobState.UNKNOWN),
        ({}, PilotJobState.UNKNOWN),
    ],
)
def test_states(ad: dict[str, object], state: PilotJobState) -> None:
    (job,) = DIALECT.parse_jobs(json.dumps({"Jobs": {"1.s": {"Job_Name": "airpanda.t", **ad}}}))
    assert job.state is state


@given(st.text())
def test_any_output_is_read_without_an_error(text: str) -> None:
    assert all(isinstance(job, CEJob) for job in DIALECT.parse_jobs(text))


def test_the_arguments_of_a_batch_and_of_one() -> None:
    words = DIALECT.submit_arguments(BatchSpec(**{**vars(SPEC), "options": ("-A", "atlas")}))
    assert words[:4] == ("-A", "atlas", "-q", "grid")
    text = " ".join(words)
    assert "-N airpanda.ap-1 -J 0-2 -l select=1:ncpus=4:mem=8000mb -l walltime=3600" in text
    assert "-V" not in words
    one = DIALECT.submit_arguments(BatchSpec(**{**vars(SPEC), "copies": 1}))
    assert "-J" not in one, "PBS has no arrays of one"
    assert DIALECT.cancel_arguments({"12[].pbs1": [0, 1, 2, 7], "13.pbs1": [0]}) == (
        "12[0-2].pbs1",
        "12[7].pbs1",
        "13.pbs1",
    )


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("qsub: would exceed queue generic's per-user limit of jobs in 'Q' state", ThrottledError),
        ("qsub: cannot connect to server pbs1 (errno=111)", CEUnavailableError),
        ("qsub: Unauthorized Request", CECredentialError),
        ("qsub: Bad UID for job execution", CECredentialError),
        ("qsub: Unknown queue", InvalidDescriptionError),
        ("qsub: Illegal attribute or resource value Resource_List.walltime", InvalidDescriptionError),
        ("qsub: End of File", SubmitUncertainError),
        ("something new", CEUnavailableError),
    ],
)
def test_messages_become_errors(said: str, kind: type[ComputingElementError]) -> None:
    assert type(to_error("c", said, DIALECT.errors)) is kind


def test_the_functions_in_a_shell(tmp_path: Path) -> None:
    assert run_functions("list_tag a", tmp_path).stdout == "12[].pbs1\n"
    assert run_functions("active_tags", tmp_path).stdout == "a\nb\n"
    assert run_functions("list_jobs", tmp_path).stdout.count("\n") == 1
    assert run_functions("enqueue -N x -J 0-2", tmp_path).stdout == "12[].pbs1\n"
    assert run_functions("dequeue '12[0].pbs1'", tmp_path).returncode == 0, "what is gone need not be deleted"
    refused = "qdel() { echo 'qdel: Unauthorized Request' >&2; return 159; }; dequeue 1"
    assert run_functions(refused, tmp_path).returncode != 0
    assert run_functions("qselect() { return 1; }; list_jobs", tmp_path).returncode != 0


def test_a_job_learns_its_place(tmp_path: Path) -> None:
    for variables, expected in (
        ("PBS_ARRAY_INDEX=4 PBS_ARRAY_ID='12[].s' PBS_JOBID='12[4].s'", "4 12[].s"),
        ("PBS_JOBID=13.s", "0 13.s"),
    ):
        script = f"{variables}; echo {DIALECT.index} {DIALECT.job_id}"
        assert subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout.strip() == expected
