"""A process is born in its payload's cgroup, or moves there itself where the kernel knows no such birth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.need import need_root

import airpanda

pytestmark = [pytest.mark.root, pytest.mark.integration]

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
from airpanda.glexec.launcher import init, kernel
from airpanda.glexec.launcher.cgroup import PayloadCgroup
if sys.argv[2] == "old":
    def refused(cgroup):
        raise OSError(38, "clone3")
    kernel.fork_into = refused
cgroup = PayloadCgroup.make(max_processes=10)
if cgroup is None:
    sys.exit("no cgroups")
pid = init._fork(cgroup.directory)
if pid == 0:
    inside = cgroup.path.name in open("/proc/self/cgroup").read()
    os._exit(7 if inside else 8)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
cgroup.remove()
print(cgroup.path.exists())
"""


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_the_payloads_process_is_in_it(kernel: str) -> None:
    need_root()
    plugins = Path(airpanda.__file__).parent.parent
    argv = [sys.executable, "-I", "-c", PROGRAM, str(plugins), kernel]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if "no cgroups" in done.stderr:
        pytest.skip("NOT TESTED: this machine has no cgroup v2 that root may divide")
    assert done.stdout.split() == ["7", "False"], done
