"""The Grid Engine dialect. Outputs are recorded from 8.1.9."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.computing.dialects.gridengine import GridEngine
from airpanda.computing.dialects.port import BatchSpec, CEJob, to_error
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
    PilotJobState,
)

SGE = GridEngine()
RECORDED = """\
job-ID  prior   name       user         state submit/start at     queue                          slots ja-task-ID 
-----------------------------------------------------------------------------------------------------------------
      1 0.50000 airpanda.t pilot        r     11/25/2026 02:46:46 main.q@sgehost                     1 1
       Full jobname:     airpanda.tt
       Master Queue:     main.q@sgehost
       Hard Resources:   h_rt=600 (0.000000)
       Soft Resources:   
       Binding:          NONE
      1 0.00000 airpanda.t pilot        qw    11/25/2026 02:46:37                                    1 9
       Full jobname:     airpanda.tt
       Hard Resources:   
      2 0.00000 airpanda.t pilot        hqw   11/25/2026 02:46:37                                    1 3
       Full jobname:     airpanda.tt2
      3 0.50000 other      pilot        r     11/25/2026 02:46:46 main.q@sgehost                     1 2
       Full jobname:     other
      4 0.50000 airpanda.x pilot        dr    11/25/2026 02:46:46 main.q@sgehost                     1 2
       Full jobname:     airpanda.x
"""  # noqa: W291 - as recorded


def test_recorded_lines() -> None:
    jobs = SGE.parse_jobs(RECORDED)
    assert [(job.job, job.index, job.tag, job.state.value) for job in jobs] == [
        ("1", 0, "tt", "running"),
        ("1", 8, "tt", "queued"),
        ("2", 2, "tt2", "held"),
        ("4", 1, "x", "completing"),
    ]


@pytest.mark.parametrize(
    ("letters", "state"),
    [
        ("qw", PilotJobState.QUEUED),
        ("Rq", PilotJobState.UNKNOWN),
        ("hqw", PilotJobState.HELD),
        ("t", PilotJobState.STAGING),
        ("r", PilotJobState.RUNNING),
        ("Rr", PilotJobState.RUNNING),
        ("s", PilotJobState.HELD),
        ("S", PilotJobState.HELD),
        ("T", PilotJobState.HELD),
        ("dr", PilotJobState.COMPLETING),
        ("dt", PilotJobState.COMPLETING),
        ("Eqw", PilotJobState.FAILED),
        ("Ehqw", PilotJobState.FAILED),
        ("zz", PilotJobState.UNKNOWN),
    ],
)
def test_states(letters: str, state: PilotJobState) -> None:
    text = f"      1 0.50000 n          pilot        {letters:<5} 11/25/2026 02:46:46 main.q@h    1 1\n"
    (job,) = SGE.parse_jobs(text + "       Full jobname:     airpanda.t\n")
    assert job.state is state


def test_a_name_without_its_job_says_nothing() -> None:
    assert SGE.parse_jobs("       Full jobname:     airpanda.t\n") == []
    assert SGE.parse_jobs(RECORDED.splitlines()[2]) == []


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert all(isinstance(job, CEJob) for job in SGE.parse_jobs(text))


def test_arguments() -> None:
    spec = BatchSpec("1t", 3, cores=1, memory_mib=100, walltime_s=61, partition="q", options=("-P", "x y"))
    arguments = SGE.submit_arguments(spec)
    assert arguments[:8] == ("-P", "x y", "-q", "q", "-N", "airpanda.1t", "-t", "1-3")
    assert "h_rt=61" in arguments
    assert SGE.cancel_arguments({"12": [0, 1, 2, 6], "13": [4]}) == ("12.1-3", "12.7", "13.5")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            'Unable to run job: Job was rejected because job requests unknown queue "nope"\nExiting.',
            InvalidDescriptionError,
        ),
        ('Unable to run job: unknown resource "bogus"\nExiting.', InvalidDescriptionError),
        ('qsub: invalid option argument "--bogus"', InvalidDescriptionError),
        ("error: commlib error: got select error (Connection refused)", CEUnavailableError),
        ('denied: host "x" is no submit host', CECredentialError),
        ("something new", CEUnavailableError),
    ],
)
def test_messages_become_errors(said: str, kind: type[ComputingElementError]) -> None:
    assert type(to_error("gridengine:X", said, SGE.errors)) is kind
