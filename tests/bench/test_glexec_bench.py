"""Start-up of ``/usr/bin/true`` through the launcher: each mapping, each kind of proxy, each way in."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from bench.record import record
from support.launcher import HOME, PILOT_UID, WORK, Site, host_pids, host_status, program_of, wait_for
from support.launcher_mappings import DATABASE, MAPPINGS, authorise, mapped_site, write
from support.need import need_program
from support.voms import allow_voms, put_voms_proxy

from airpanda_demo.worker_node import GRID_SECURITY, INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(900)]

RUNS, SUSTAINED, WORKERS = 25, 60, 4
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
        yield site


def measured(
    site: Site, program: str, command: list[str], env: Mapping[str, str], *numbers: int, root: bool
) -> list[float]:
    """What a timing program prints that runs on the node, as the pilot or as root."""
    enter = site.node.root_argv() if root else [*site.node.enter_argv("pilot"), "/usr/bin/env", "-i"]
    variables = [f"{name}={value}" for name, value in env.items()]
    argv = [*enter, *variables, sys.executable, "-IS", "-c", program, json.dumps(command), *map(str, numbers)]
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
    record("glexec.start.baseline", baseline, "ms", conditions="pilot forks and executes /usr/bin/true; median")
    record("glexec.start.sudo", sudo, "ms", conditions="sudo -n -u ACCOUNT /usr/bin/true; median")
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
        record(name, value, "ms", against=against, ratio=value / sudo, conditions="median of /usr/bin/true")


def test_cpu_of_a_launch(site: Site) -> None:
    """What a launch by the socket costs in CPU time, client and daemon side: hardly depends on who else is busy."""
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy())}
    daemon = next(pid for pid in host_pids() if is_daemon(site, pid))
    before = cpu_s(daemon)
    [client_ms] = measured(site, CPU, [str(site.glexec), "/usr/bin/true"], env, SUSTAINED, root=False)
    wait_for(lambda: not children(daemon))
    value = client_ms + (cpu_s(daemon) - before) / SUSTAINED * 1000
    against = {"client": round(client_ms, 2)}
    record(f"glexec.cpu.{site.mapping}", value, "ms", against=against, conditions="CPU of one launch by the socket")


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


def test_launches_a_second(site: Site) -> None:
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy())}
    [rate] = measured(site, SUSTAIN, [str(site.glexec), "/usr/bin/true"], env, SUSTAINED, WORKERS, root=False)
    against = {"bar": BAR_PER_S}
    conditions = f"{SUSTAINED} launches by the socket, {WORKERS} at a time"
    name = f"glexec.sustained.{site.mapping}"
    record(name, rate, "launches/s", against=against, ratio=rate / BAR_PER_S, conditions=conditions)
