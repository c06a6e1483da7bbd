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


BOUNDED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from airpanda.glexec.launcher import cgroup
cgroup._own_cgroup = lambda: Path(sys.argv[2])
made = cgroup.PayloadCgroup.make(max_processes=77)
print(made.path.parent, (made.path / "pids.max").read_text())
"""


def test_the_limit_of_processes_is_written_where_there_is_one(tmp_path: Path) -> None:
    """A directory takes the place of a cgroup that has the pids controller: here is none of version 2."""
    plugins = Path(airpanda.__file__).parent.parent
    argv = [sys.executable, "-I", "-c", BOUNDED, str(plugins), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{tmp_path} 77\n", done
