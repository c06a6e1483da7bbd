"""The Slurm dialect: what is asked, what its answers mean. Outputs are recorded from 22.05.8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.computing.dialects.port import BatchSpec, CEJob, ranges, to_error
from airpanda.computing.dialects.slurm import Slurm
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
    PilotJobState,
    SubmitUncertainError,
    ThrottledError,
)

SLURM = Slurm()
RECORDED = """\
2|64|PENDING|kk|Resources
2|22|RUNNING|kk|None
1|0|PENDING|tt|JobHeldUser
9|1|COMPLETED|tt|None
9|2|FAILED|tt|NonZeroExitCode
9|3|TIMEOUT|tt|TimeLimit
9|4|CANCELLED|tt|None
9|5|COMPLETING|tt|None
9|6|NODE_FAIL|tt|None
9|7|PREEMPTED|tt|None
9|8|OUT_OF_MEMORY|tt|None
3|N/A|CANCELLED|all|None
"""


def test_recorded_lines() -> None:
    jobs = SLURM.parse_jobs(RECORDED)
    assert [(job.job, job.index, job.tag, job.state.value) for job in jobs] == [
        ("2", 64, "kk", "queued"),
        ("2", 22, "kk", "running"),
        ("1", 0, "tt", "held"),
        ("9", 1, "tt", "done"),
        ("9", 2, "tt", "failed"),
        ("9", 3, "tt", "timeout"),
        ("9", 4, "tt", "cancelled"),
        ("9", 5, "tt", "completing"),
        ("9", 6, "tt", "failed"),
        ("9", 7, "tt", "preempted"),
        ("9", 8, "tt", "failed"),
        ("3", None, "all", "cancelled"),
    ]
    assert jobs[0].reason == "Slurm says PENDING: Resources"
    assert jobs[1].reason == "Slurm says RUNNING"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "slurm_load_jobs error: Unable to contact slurm controller",
        "CLUSTER: other",
        "2|64-99|PENDING|kk|Resources",  # not expanded: speaks of several
        "2|64|PENDING|kk",
        "2|64|PENDING|a tag|None",
        "2|64|PENDING|kk|a|b",
        "-2|64|PENDING|kk|None",
        "2|64|pending|kk|None",
    ],
)
def test_other_lines_say_nothing(text: str) -> None:
    assert SLURM.parse_jobs(text) == []


def test_a_state_of_a_later_version_is_unknown_not_an_end() -> None:
    assert SLURM.parse_jobs("2|1|FROZEN|kk|None")[0].state is PilotJobState.UNKNOWN


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert all(isinstance(job, CEJob) for job in SLURM.parse_jobs(text))


def test_submit_arguments_put_the_sites_first_and_round_time_up() -> None:
    spec = BatchSpec("t", 3, cores=2, memory_mib=100, walltime_s=61, partition="p q", options=("--qos=$(x)",))
    assert SLURM.submit_arguments(spec) == (
        "--qos=$(x)",
        "--partition=p q",
        "--job-name=t",
        "--comment=t",
        "--array=0-2",
        "--ntasks=1",
        "--cpus-per-task=2",
        "--mem=100M",
        "--time=2",
        "--export=NIL",
        "--no-requeue",
        "--open-mode=append",
        "--output=%a/pilot.log",
    )


def test_cancel_arguments_are_one_word_a_job() -> None:
    assert SLURM.cancel_arguments({"12": [3, 0, 1, 2, 7], "13": [5]}) == ("12_[0-3,7]", "13_[5]")


@given(st.lists(st.integers(0, 10_000), min_size=1))
def test_ranges_name_exactly_the_indices(indices: list[int]) -> None:
    parts = [part.split("-") for part in ranges(indices).split(",")]
    named = [index for part in parts for index in range(int(part[0]), int(part[-1]) + 1)]
    assert named == sorted(set(indices))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", InvalidDescriptionError),
        ("sbatch: error: Batch job submission failed: Invalid job array specification", InvalidDescriptionError),
        (
            "sbatch: error: Memory specification can not be satisfied\n"
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            InvalidDescriptionError,
        ),
        ("sbatch: unrecognized option '--bogus'\nTry \"sbatch --help\" for more information", InvalidDescriptionError),
        ("sbatch: error: Invalid --time specification", InvalidDescriptionError),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            CECredentialError,
        ),
        ("sbatch: error: Batch job submission failed: Access/permission denied", CECredentialError),
        (
            "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
            "(job submit limit, user's size and/or time limits)",
            ThrottledError,
        ),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            CEUnavailableError,
        ),
        (
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            SubmitUncertainError,
        ),
        ("sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", SubmitUncertainError),
        ("sbatch: error: something new", CEUnavailableError),
        ("", CEUnavailableError),
    ],
)
def test_messages_become_errors(said: str, kind: type[ComputingElementError]) -> None:
    error = to_error("slurm:X", said, SLURM.errors)
    assert type(error) is kind
    assert error.transient is (kind not in (InvalidDescriptionError, CECredentialError))
    assert "slurm:X" in str(error)


def test_a_long_message_is_cut() -> None:
    assert len(str(to_error("slurm:X", "no " * 100_000, SLURM.errors))) < 1000
