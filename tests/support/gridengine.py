"""Grid Engine's real daemons in namespaces of their own: accounts, files, processes and network.

The network is private because ``sge_qmaster`` listens on every interface of its machine and has no option for it.
"""

from __future__ import annotations

import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.need import need_program, need_root

UID = 61001
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_CELL = "/var/lib/gridengine/default/common"

# The last line of output says "ready"; the end of standard input ends everything, for this shell is the init process.
_SCRIPT = f"""
set -eu
ip link set lo up
hostname sgehost
mount -t tmpfs tmpfs /mnt
cp -a /var/lib/gridengine /mnt/lib
cp -a /var/spool/gridengine /mnt/spool
cp -a /etc /mnt/etc
mount --bind /mnt/lib /var/lib/gridengine
mount --bind /mnt/spool /var/spool/gridengine
mount --bind /mnt/etc /etc
mount -t tmpfs tmpfs /run
mkdir /run/gridengine
chown sgeadmin /run/gridengine
echo '127.0.0.1 sgehost localhost' >/etc/hosts
echo 'pilot:x:{UID}:{UID}::/home/pilot:/bin/sh' >>/etc/passwd
echo 'pilot:x:{UID}:' >>/etc/group
mount -t tmpfs tmpfs /home
mkdir /home/pilot
chown {UID}:{UID} /home/pilot
echo sgehost >{_CELL}/act_qmaster
echo 'sgehost localhost' >{_CELL}/host_aliases
sge_qmaster
for try in $(seq 100); do qconf -ss >/dev/null 2>&1 && break; sleep 0.3; done || :
qconf -ssconf | sed 's/^schedule_interval .*/schedule_interval 0:0:1/
    s/^flush_submit_sec .*/flush_submit_sec 1/; s/^flush_finish_sec .*/flush_finish_sec 1/' >/mnt/sched
qconf -Msconf /mnt/sched
qconf -as sgehost
cat >/mnt/host <<E
hostname sgehost
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
E
qconf -Ae /mnt/host
printf 'group_name @allhosts\\nhostlist sgehost\\n' >/mnt/hgrp
qconf -Ahgrp /mnt/hgrp
sge_execd
{{
    printf '%s NONE\\n' load_thresholds suspend_thresholds ckpt_list pe_list prolog epilog starter_method \\
        suspend_method resume_method terminate_method owner_list user_lists xuser_lists subordinate_list \\
        complex_values projects xprojects calendar
    printf '%s INFINITY\\n' s_rt h_rt s_cpu h_cpu s_fsize h_fsize s_data h_data s_stack h_stack s_core h_core \\
        s_rss h_rss s_vmem h_vmem
    printf '%s\\n' 'qname main.q' 'hostlist @allhosts' 'seq_no 0' 'nsuspend 1' 'suspend_interval 00:05:00' \\
        'priority 0' 'min_cpu_interval 00:05:00' 'processors UNDEFINED' 'qtype BATCH' 'rerun FALSE' 'slots 8' \\
        'tmpdir /tmp' 'shell /bin/sh' 'shell_start_mode posix_compliant' 'notify 00:00:02' 'initial_state default'
}} >/mnt/queue
qconf -Aq /mnt/queue
for try in $(seq 100); do qhost | grep -q 'sgehost *lx' && break; sleep 0.3; done
echo ready
cat >/dev/null
"""


class GridEngineHost:
    """A machine that is submit host, master and execution host with 8 slots."""

    def __init__(self, pid: int) -> None:
        self._nsenter = ["/usr/bin/nsenter", f"--target={pid}", "--mount", "--net", "--uts", "--ipc", "--pid"]

    def enter_argv(self) -> list[str]:
        """What to put before a command to run it as the pilots' account."""
        ids = [f"--setgid={UID}", f"--setuid={UID}"]
        return [*self._nsenter, *ids, "--", "/usr/bin/env", "-C", "/home/pilot", "HOME=/home/pilot", "USER=pilot"]

    def root(self, *argv: str) -> str:
        """The output of a command that root runs there."""
        command = [*self._nsenter, "--", *argv]
        return subprocess.run(command, capture_output=True, timeout=30, env={"PATH": _PATH}).stdout.decode()


@contextmanager
def running_gridengine() -> Iterator[GridEngineHost]:
    need_root()
    for program, package in (
        ("sge_qmaster", "gridengine-master"),
        ("sge_execd", "gridengine-exec"),
        ("qsub", "gridengine-client"),
    ):
        need_program(program, package)
    need_program("ip", "iproute2")
    own = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        ["unshare", *own, "sh", "-c", _SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": _PATH},
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        while not said.endswith(b"ready\n"):
            assert select.select([process.stdout], [], [], 120)[0], said
            data = process.stdout.read1(4096)  # type: ignore[attr-defined]
            assert data, said
            said += data
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        yield GridEngineHost(int(children.split()[0]))
    finally:
        process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]
