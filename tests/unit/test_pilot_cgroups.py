"""Limits of cgroups, as containers and batch systems make them."""

from __future__ import annotations

import pytest

from airpanda.pilot import probe
from airpanda.pilot.cgroups import core_limit, memory_limit_bytes

GIB = 2**30
V2 = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"
JOB = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7"
V1 = "9:memory:/slurm/uid_5/job_7/step_0\n4:cpu,cpuacct:/slurm/uid_5/job_7/step_0\n1:name=systemd:/x\n0::/x\n"
SLURM_V1 = "/sys/fs/cgroup/{}/slurm/uid_5/job_7{}"
NO_LIMIT_V1 = "9223372036854771712\n"


@pytest.mark.parametrize(
    ("files", "memory", "cores"),
    [
        ({}, None, None),
        ({"/proc/self/cgroup": "nonsense\n::\n0::/../..\n", "/sys/fs/cgroup/memory.max": "-1\n"}, None, None),
        ({"/proc/self/cgroup": V2, f"{JOB}/memory.max": "max\n", f"{JOB}/cpu.max": "max 100000\n"}, None, None),
        (
            {"/proc/self/cgroup": V2, f"{JOB}/memory.max": f"{2 * GIB}\n", f"{JOB}/cpu.max": "150000 100000\n",
             "/sys/fs/cgroup/system.slice/memory.max": f"{8 * GIB}\n", f"{JOB}/step_0/memory.max": "max\n"},
            2 * GIB, 1.5,
        ),
        (
            {"/proc/self/cgroup": "0::/../../elsewhere\n", "/sys/fs/cgroup/memory.max": f"{GIB}\n",
             "/sys/fs/cgroup/cpu.max": "200000 100000\n"},
            GIB, 2.0,
        ),
        (
            {"/proc/self/cgroup": V1,
             SLURM_V1.format("memory", "/memory.limit_in_bytes"): f"{3 * GIB}\n",
             SLURM_V1.format("memory", "/step_0/memory.limit_in_bytes"): NO_LIMIT_V1,
             SLURM_V1.format("cpu,cpuacct", "/cpu.cfs_quota_us"): "-1\n",
             SLURM_V1.format("cpu,cpuacct", "/cpu.cfs_period_us"): "100000\n"},
            3 * GIB, None,
        ),
        (
            {"/proc/self/cgroup": V1, SLURM_V1.format("cpu", "/cpu.cfs_quota_us"): "50000\n",
             SLURM_V1.format("cpu", "/cpu.cfs_period_us"): "100000\n",
             "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n"},
            GIB, 0.5,
        ),
        (
            {"/proc/self/cgroup": V2 + V1, "/sys/fs/cgroup/unified/memory.max": f"{5 * GIB}\n",
             "/sys/fs/cgroup/cpu.max": "1 0\n"},
            5 * GIB, None,
        ),
    ],
    ids=["nothing", "nonsense", "no limit", "Slurm 2", "container", "Slurm 1", "container 1", "both"],
)  # fmt: skip
def test_the_least_limit_from_the_own_group_upwards_counts(
    files: dict[str, str], memory: int | None, cores: float | None
) -> None:
    def read(path: str) -> str:
        return files.get(path, "")

    assert (memory_limit_bytes(read), core_limit(read)) == (memory, cores)


def test_what_is_offered_is_within_them_and_never_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/self/cgroup": V2, f"{JOB}/memory.max": str(100 * 2**20), f"{JOB}/cpu.max": "50000 100000"}
    monkeypatch.setattr(probe, "_read", lambda path: files.get(path, ""))
    assert (probe.usable_memory_mib(), probe.usable_cores()) == (100, 1)
    monkeypatch.setattr(probe, "_read", lambda _path: "")
    assert probe.usable_memory_mib() > 100
