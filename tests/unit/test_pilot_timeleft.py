"""What batch systems say about the time that is left: recorded texts, and texts that nobody should believe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from airpanda.pilot import timeleft
from airpanda.pilot.timeleft import condor_numbers, gridengine_limit_s, run_command, time_left_s

NOW = 1_000_000.0

# Recorded from Debian's Grid Engine 8.1.9, on the execution host.
QSTAT = """\
==============================================================
job_number:                 2
exec_file:                  job_scripts/2
submission_time:            Sat Nov 28 16:11:31 2026
owner:                      pilot
cwd:                        /home/pilot
merge:                      y
hard resource_list:         h_rt=1200,s_rt=900
mail_list:                  pilot@sgehost
job_name:                   sh
env_list:                   TERM=NONE
job_args:                   -c,sleep 3
job-array tasks:            2-3:1
usage         2:            cpu=00:00:00, mem=0.00000 GB s, io=0.00000 GB, vmem=N/A, maxvmem=N/A
scheduling info:            There are no messages available
"""
NO_TIME = QSTAT.replace("h_rt=1200,s_rt=900", "mem_free=1G")
QUEUE = """\
qname                 main.q
notify                00:00:02
initial_state         default
s_rt                  INFINITY
h_rt                  INFINITY
s_cpu                 INFINITY
h_cpu                 00:10:00
"""

# In the form of the files that HTCondor writes for a job (ClassAds, long form).
JOB_AD = """\
AllowedExecuteDuration = 7200
Args = "--code x"
ClusterId = 12
JobCurrentStartDate = 999400
JobStatus = 2
Requirements = (TARGET.Arch == "X86_64") && (TARGET.Memory >= RequestMemory)
RequestMemory = 2000
"""
MACHINE_AD = 'Cpus = 8\nGLIDEIN_ToDie = 1003600\nMachine = "slot1@wn1.example.org"\nRank = 0.0\n'


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("qstat", "qconf"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def nothing(text: object) -> str:
    return ""


@pytest.mark.parametrize(
    ("variables", "left"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1000600"}, 600.0),
        ({"SLURM_JOB_END_TIME": "400"}, 0.0),
        ({"SLURM_JOB_END_TIME": "soon", "PBS_WALLTIME": "-5"}, None),
        ({"SLURM_JOB_END_TIME": "\u0661"}, None),
        ({"SLURM_JOB_END_TIME": "9" * 5000}, float("9" * 18) - NOW),
        ({"PBS_WALLTIME": "3600"}, 3600.0),
        ({"PBS_WALLTIME": "3600", "SLURM_JOB_END_TIME": "1000060"}, 60.0),
    ],
)
def test_what_variables_say(variables: dict[str, str], left: float | None) -> None:
    assert time_left_s(variables, NOW, run=nothing, read=nothing) == left


@pytest.mark.parametrize(
    ("qstat", "queue", "left"),
    [
        (QSTAT, QUEUE, 900.0),
        (QSTAT.replace(",s_rt=900", ""), QUEUE, 1200.0),
        (QSTAT.replace("h_rt=1200,s_rt=900", "h_rt=1200,s_rt=900,h_rt=5x"), "", 900.0),
        (NO_TIME, QUEUE, None),
        (NO_TIME, QUEUE.replace("h_rt                  INF", "h_rt  48:00:00\n#"), 172800.0),
        (QSTAT, QUEUE.replace("s_rt                  INFINITY", "s_rt                  0:5:0"), 300.0),
        ("", "", None),
        ("hard resource_list:         h_rt", "h_rt", None),
        ("job_args:  hard resource_list:         h_rt=5", "", None),
        ("\n" * 10**6 + "hard resource_list: h_rt=\u0665", "", None),
    ],
)  # fmt: skip
def test_grid_engines_limits(qstat: str, queue: str, left: float | None) -> None:
    assert gridengine_limit_s(qstat, queue) == left


def test_grid_engine_is_asked_for_this_job_and_its_queue(programs: Path) -> None:
    asked: list[Sequence[str]] = []

    def run(argv: Sequence[str]) -> str:
        asked.append(argv)
        return QSTAT if "-j" in argv else QUEUE

    variables = {"SGE_ROOT": "/opt/sge", "JOB_ID": "2", "QUEUE": "main.q"}
    assert time_left_s(variables, NOW, run=run, read=nothing) == 900.0
    assert asked == [[f"{programs}/qstat", "-j", "2"], [f"{programs}/qconf", "-sq", "main.q"]]
    for bad in ({"JOB_ID": "2 -u x"}, {"JOB_ID": ""}, {"JOB_ID": "-help"}):
        asked.clear()
        assert time_left_s(variables | bad, NOW, run=run, read=nothing) is None
        assert asked == []
    assert time_left_s(variables | {"QUEUE": "-help"}, NOW, run=run, read=nothing) == 900.0
    assert asked == [[f"{programs}/qstat", "-j", "2"]]
    assert time_left_s({"JOB_ID": "2"}, NOW, run=run, read=nothing) is None, "some other system's variable"


@pytest.mark.parametrize(
    ("job", "machine", "left"),
    [
        (JOB_AD, MACHINE_AD, 3600.0),
        (JOB_AD, "", 6600.0),
        (JOB_AD.replace("AllowedExecuteDuration", "AllowedJobDuration"), "", 6600.0),
        (JOB_AD.replace("AllowedExecuteDuration", "MaxRuntime"), "", 6600.0),
        (JOB_AD.replace("AllowedExecuteDuration = 7200", "AllowedExecuteDuration = 100"), "", 0.0),
        (JOB_AD.replace("JobCurrentStartDate", "QDate"), "", 7200.0),
        (JOB_AD.replace("7200", "undefined"), "Cpus = 8\n", None),
        (JOB_AD.replace("7200", "-1"), "", None),
        ("", MACHINE_AD, 3600.0),
        ("\0\n= = =\nMaxRuntime\n", "GLIDEIN_ToDie = \n", None),
    ],
)
def test_condors_limits(job: str, machine: str, left: float | None) -> None:
    texts = {"/d/.job.ad": job, "/d/.machine.ad": machine}
    variables = {"_CONDOR_JOB_AD": "/d/.job.ad", "_CONDOR_MACHINE_AD": "/d/.machine.ad"}
    assert time_left_s(variables, NOW, run=nothing, read=texts.__getitem__) == left


def test_only_plain_numbers_of_a_classad_are_read() -> None:
    found = condor_numbers(JOB_AD + MACHINE_AD + 'Evil = "\\nMaxRuntime = 1"\nBig = 9999999999999999999\n')
    assert found["jobcurrentstartdate"] == 999400
    assert found["rank"] == 0
    assert not {"args", "requirements", "machine", "evil", "big", "maxruntime"} & set(found)


def test_a_command_is_bounded_and_its_failure_is_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeleft, "_COMMAND_S", 0.5)
    assert run_command(["/bin/echo", "there"]) == "there\n"
    assert run_command(["/bin/sh", "-c", "echo there; exit 1"]) == ""
    assert run_command(["/bin/sleep", "60"]) == ""
    assert run_command([str(tmp_path / "nothing")]) == ""
    assert len(run_command(["/bin/sh", "-c", "head -c 5000000 /dev/zero"])) == timeleft.MAX_TEXT
