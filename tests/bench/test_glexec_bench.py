"""Start-up of ``/usr/bin/true`` through the launcher: each mapping, each kind of proxy, each way in.

With ``AIRPANDA_BENCH_FIFO=1`` what is measured runs with real-time priority: on a machine that others use, too, the
figures are then near those of a quiet one; their conditions say so.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from bench.record import record
from support.launcher import HOME, PILOT_UID, WORK, Site, host_pids, host_status, program_of, wait_for
from support.launcher_mappings import DATABASE, MAPPINGS, authorise, mapped_site, write
from support.need import absent, need_program
from support.voms import allow_voms, put_voms_proxy

from airpanda_demo.worker_node import GRID_SECURITY, INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(900)]

RUNS, SUSTAINED, WORKERS, AT_ONCE = 25, 60, 4, 30
FIFO = ["chrt", "-f", "20"] if os.environ.get("AIRPANDA_BENCH_FIFO") == "1" else []
HOW = "; real-time priority" if FIFO else ""
BARS_MS = {("lcmaps", "plain"): 60.0, ("lcmaps", "voms"): 80.0}
BAR_PER_S = 20.0
_MODULES = Path("/usr/lib/lcmaps")
_MAPFILE = f'"-gridmapfile {GRID_SECURITY}/grid-mapfile"'
VOMS_DATABASE = f"""path = {_MODULES}
verify_proxy = "lcmaps_verify_proxy.mod" "-certdir {GRID_SECURITY}/certificates"
vomslocalaccount = "lcmaps_voms_localaccount.mod" {_MAPFILE}
localaccount = "lcmaps_localaccount.mod" {_MAPFILE}
good = "lcmaps_dummy_good.mod"

glexec_get_account:
verify_proxy -> vomslocalaccount
vomslocalaccount -> good | localaccount
localaccount -> good
"""
TIMER = """
import json, os, sys, time
argv, runs, times = json.loads(sys.argv[1]), int(sys.argv[2]), []
for _ in range(runs + 2):
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, os.environ)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    times.append((time.perf_counter() - began) * 1000)
    if code:
        sys.exit(f"{argv} ended with {code}")
print(json.dumps(times[2:]))
"""
CPU = """
import json, os, resource, sys
argv, runs = json.loads(sys.argv[1]), int(sys.argv[2])
for _ in range(runs):
    if os.waitpid(os.posix_spawn(argv[0], argv, os.environ), 0)[1]:
        sys.exit("a launch failed")
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([(usage.ru_utime + usage.ru_stime) / runs * 1000]))
"""
SUSTAIN = """
import json, os, sys, time
argv, total, workers = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
running, started, began = set(), 0, time.perf_counter()
while started < total or running:
    while started < total and len(running) < workers:
        running.add(os.posix_spawn(argv[0], argv, os.environ))
        started += 1
    pid, status = os.waitpid(-1, 0)
    running.discard(pid)
    if status:
        sys.exit("a launch failed")
print(json.dumps([total / (time.perf_counter() - began)]))
"""


FORKS = """
import os, sys, time
def burn():
    while time.process_time() < 0.25:
        pass
for number in range(6):
    if os.fork() == 0:
        if os.fork() == 0:
            burn()
            os._exit(0)
        burn()
        os._exit(0)
time.sleep(0.1)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
while sum(1 for name in os.listdir("/proc") if name.isdigit()) > 2:
    time.sleep(0.05)
open(sys.argv[1] + "/done", "w").close()
while not os.path.exists(sys.argv[1] + "/go"):
    time.sleep(0.05)
"""


@pytest.fixture(scope="module", name="site", params=MAPPINGS)
def bench_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    need_program("sudo", "sudo")
    # A VOMS proxy is another owner, and so another uid.
    more = {"uid_range": "1600000000-1600000009"} if request.param == "dynamic" else {}
    for site in mapped_site(request.param, **more):
        allow_voms(site)
        write(site, DATABASE, VOMS_DATABASE)
        authorise(site, "alice", "bob")
        config = site.node.path(INSTALLED.config)
        config.write_text(config.read_text() + "allow_root = yes\n")
        etc = site.node.path(Path("/etc"))
        rule = site.read(INSTALLED.prefix / "share" / "sudoers") + "pilot ALL=(other) NOPASSWD: /usr/bin/true\n"
        (etc / "sudoers").write_text(f"Defaults env_reset\n{rule}")
        (etc / "sudoers").chmod(0o440)
        if FIFO:
            daemon = next(pid for pid in host_pids() if is_daemon(site, pid))
            os.sched_setscheduler(daemon, os.SCHED_FIFO, os.sched_param(20))
        yield site


def measured(
    site: Site, program: str, command: list[str], env: Mapping[str, str], *numbers: int, root: bool
) -> list[float]:
    """What a timing program prints that runs on the node, as the pilot or as root."""
    enter = site.node.root_argv() if root else [*site.node.enter_argv("pilot"), "/usr/bin/env", "-i"]
    variables = [f"{name}={value}" for name, value in env.items()]
    argv = [*FIFO, *enter, *variables, sys.executable, "-IS", "-c", program, json.dumps(command), *map(str, numbers)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done
    return [float(value) for value in json.loads(done.stdout)]


def median(site: Site, command: list[str], env: Mapping[str, str] | None = None, *, root: bool = False) -> float:
    return statistics.median(measured(site, TIMER, command, env or {}, RUNS, root=root))


def put_proxy(site: Site, kind: str, scratch: Path, uid: int) -> Path:
    if kind == "voms":
        return put_voms_proxy(site, scratch, uid=uid, where=WORK if uid == 0 else HOME)
    return site.put(site.proxy().to_pem().reveal(), uid=uid, where=WORK if uid == 0 else HOME)


@pytest.mark.parametrize("kind", ["plain", "voms"])
def test_start_up(site: Site, kind: str, tmp_path: Path) -> None:
    true = "/usr/bin/true"
    baseline = median(site, [true])
    sudo = median(site, ["/usr/bin/sudo", "-n", "-u", "other", true])
    record("glexec.start.baseline", baseline, "ms", conditions=f"pilot forks and executes /usr/bin/true; median{HOW}")
    record("glexec.start.sudo", sudo, "ms", conditions=f"sudo -n -u ACCOUNT /usr/bin/true; median{HOW}")
    pilots, roots = (put_proxy(site, kind, tmp_path, uid) for uid in (PILOT_UID, 0))
    ways = {
        "socket": (INSTALLED.glexec, pilots),
        "sudo": (INSTALLED.glexec_sudo, pilots),
        "root": (INSTALLED.launcher, roots),
    }
    for way, (program, proxy) in ways.items():
        env = {"GLEXEC_CLIENT_CERT": str(proxy)}
        value = median(site, [str(program), true], env, root=way == "root")
        against = {"sudo -n -u": round(sudo, 2)}
        if (bar := BARS_MS.get((site.mapping, kind))) is not None:
            against["bar"] = bar
        name = f"glexec.start.{site.mapping}.{kind}.{way}"
        record(name, value, "ms", against=against, ratio=value / sudo, conditions=f"median of /usr/bin/true{HOW}")


def test_cpu_of_a_launch(site: Site) -> None:
    """What a launch by the socket costs in CPU time, client and daemon side: hardly depends on who else is busy."""
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy())}
    daemon = next(pid for pid in host_pids() if is_daemon(site, pid))
    before = cpu_s(daemon)
    [client_ms] = measured(site, CPU, [str(site.glexec), "/usr/bin/true"], env, SUSTAINED, root=False)
    wait_for(lambda: not children(daemon))
    value = client_ms + (cpu_s(daemon) - before) / SUSTAINED * 1000
    against = {"client": round(client_ms, 2)}
    record(
        f"glexec.cpu.{site.mapping}", value, "ms", against=against, conditions=f"CPU of one launch by the socket{HOW}"
    )


def is_daemon(site: Site, pid: int) -> bool:
    status = host_status(pid)
    if not status or int(status["PPid"]) != site.node.init_pid:
        return False
    return program_of(Path(f"/proc/{pid}/cmdline").read_bytes()) == "airpanda-launcherd"


def children(pid: int) -> list[int]:
    return [other for other in host_pids() if (status := host_status(other)) and int(status["PPid"]) == pid]


def cpu_s(pid: int) -> float:
    """Of a process and all it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("way", ["socket", "sudo"])
def test_launches_a_second(site: Site, way: str) -> None:
    program = str(INSTALLED.glexec if way == "socket" else INSTALLED.glexec_sudo)
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy())}
    [rate] = measured(site, SUSTAIN, [program, "/usr/bin/true"], env, SUSTAINED, WORKERS, root=False)
    against = {"bar": BAR_PER_S}
    conditions = f"{SUSTAINED} launches by {way}, {WORKERS} at a time{HOW}"
    name = f"glexec.sustained.{site.mapping}.{way}"
    record(name, rate, "launches/s", against=against, ratio=rate / BAR_PER_S, conditions=conditions)


@pytest.mark.parametrize("way", ["socket", "sudo"])
def test_thirty_at_once(site: Site, way: str) -> None:
    """None fails, and each is on record as its owner's."""
    program = str(INSTALLED.glexec if way == "socket" else INSTALLED.glexec_sudo)
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy())}
    before = len(site.node.records())
    [rate] = measured(site, SUSTAIN, [program, "/usr/bin/true"], env, AT_ONCE, AT_ONCE, root=False)
    wait_for(lambda: len(site.node.records()) == before + AT_ONCE)
    runs = site.node.records()[before:]
    assert {(run["rc"], run["identity_switched"], run["dn"]) for run in runs} == {(0, True, site.pki.dn("alice"))}
    conditions = f"{AT_ONCE} started at once by {way}, until the last has ended{HOW}"
    record(f"glexec.at_once.{site.mapping}.{way}", AT_ONCE / rate, "s", against={}, conditions=conditions)


def test_accounting(site: Site) -> None:
    """The launcher's CPU time of a payload that forks and lets go, against the kernel's figure as the host reads it."""
    here = site.directory(mode=0o777)
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy())}
    burn = [sys.executable, "-IS", "-c", FORKS, str(here)]
    running = site.start(str(site.glexec), *burn, env=env, stdin=subprocess.DEVNULL)
    wait_for(lambda: site.node.path(here / "done").exists(), 120)
    payload = site.node.path(here / "done").stat().st_uid
    [pid, *_] = site.processes(payload)
    kernels = kernel_cpu_s(pid)
    site.node.path(here / "go").touch()
    assert running.wait(60) == 0
    if kernels is None:
        absent("NOT MEASURED: this kernel has no cgroup v2 for payloads")
    last = wait_for(lambda: found if (found := site.last_record())["uid"] == payload else None)
    for name, value in (("cgroup", last["cpu"]), ("reaped", last["cpu_user"] + last["cpu_system"])):
        against = {"kernel": round(kernels, 3), "bar": "0.98 to 1.02"}
        conditions = f"CPU of 12 forked processes, half of them orphans, by the launcher's {name} figure"
        record(f"glexec.accounting.{site.mapping}.{name}", value, "s", against=against, ratio=value / kernels,
               conditions=conditions)  # fmt: skip
    assert last["cpu"] == pytest.approx(kernels, rel=0.02)


def kernel_cpu_s(pid: int) -> float | None:
    """What the payload's own cgroup has counted by now."""
    own = next(line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mount = next((fields[4] for fields in mounts if "cgroup2" in fields[6:]), None)
    if mount is None or "airpanda-payload-" not in own:
        return None
    usage = (Path(mount) / own.strip("/") / "cpu.stat").read_text()
    return int(re.search(r"usage_usec (\d+)", usage)[1]) / 1e6  # type: ignore[index]
