"""The pilot's own cost: what a job takes that is neither payload nor data, the pilot's memory, and its start.

Compared with the meaning of PanDA's ``pilotTiming``: its getjob, stage-in, payload set-up, stage-out and final
update are whole phases of a pilot; here the first figure is from the answer of ``acquire_jobs`` to the payload's
first instruction (MyProxy retrieval, sandbox, stage-in of one script, and switch included), the second from the
payload's last instruction to the accepted final report (output and log stored included).
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bench.record import record
from support.dispatcher import job_database, spec, template_database
from support.fake_dispatcher import TOKEN, fake_dispatcher
from support.launcher import PILOT_UID, Site, wait_for
from support.node_processes import command_of, pilots_of, processes_of
from support.pilot_chain import WRAPPER, Chain, chain, myproxy, site
from support.postgres import postgres

from airpanda.computing.elements import Handle
from airpanda.pilot.bundle import write_bundle

__all__ = ["chain", "job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(600)]

JOBS, STARTS = 30, 10
LINE = re.compile(r"^(\S+ \S+)Z INFO job (\d+) attempt 1: (begins|finished)", re.MULTILINE)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def put_down(name: str, values: list[float], bar: float, conditions: str) -> None:
    median = statistics.median(values)
    against = {"bar": bar, "p95": round(percentile(values, 0.95), 4)}
    record(f"pilot: {name}", median, "s", against=against, ratio=median / bar, conditions=conditions)
    print(f"{name}: median {median:.3f} s, p95 {percentile(values, 0.95):.3f} s, bar {bar} s")


def peak_rss_mib(site: Site) -> float:
    """The most that a pilot of this node has ever had in memory, as far as it still lives."""
    found = [0.0]
    for pid in pilots_of(site, PILOT_UID):
        text = Path(f"/proc/{pid}/status").read_text()
        found += [int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")]
    return max(found)


def overheads(chain: Chain, handles: list[Handle], first: int, n: int) -> tuple[list[float], list[float]]:
    """Seconds before each payload's first instruction and after its last, by the pilot's log and the payload's."""
    times: dict[tuple[int, str], float] = {}
    for moment, panda_id, what in LINE.findall(chain.logs(handles)):
        parsed = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC)
        times[int(panda_id), what] = parsed.timestamp()
    before, after = [], []
    for panda_id in range(first, first + n):
        begin, end = map(float, chain.http.get(f"/v1/job/{panda_id}/log").text.split())
        before.append(begin - times[panda_id, "begins"])
        after.append(times[panda_id, "finished"] - end)
    return before, after


def test_overhead_of_a_job_and_memory(chain: Chain) -> None:
    argv = ["sh", "-c", "date +%s.%N; echo x > out.txt; date +%s.%N"]
    jobs = [spec(f"j{i}", argv=argv, outputs=[{"lfn": "out.txt"}], walltime_s=120) for i in range(JOBS)]
    task = chain.submit("alice", *jobs)
    handles = chain.send_pilots(1)
    chain.wait(task["task_id"], 240)
    rss_mib = peak_rss_mib(chain.site)
    chain.pilots_end(handles)
    before, after = overheads(chain, handles, task["first_panda_id"], JOBS)
    how = f"{JOBS} jobs of one pilot; real gateway, PostgreSQL, Debian's MyProxy and launcher on the same machine"
    put_down("acquire to the payload's first instruction", before, 0.6, how)
    put_down("the payload's last instruction to the final report", after, 0.4, how)
    record(
        "pilot: memory",
        rss_mib,
        "MiB RSS",
        against={"bar": 80},
        ratio=rss_mib / 80,
        conditions=f"peak over {JOBS} jobs",
    )
    print(f"memory: {rss_mib:.1f} MiB, bar 80")
    assert rss_mib > 0


def cpu_s(pids: list[int]) -> float:
    """CPU time of processes with that of the children they have waited for."""
    ticks = 0
    for pid in pids:
        try:
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except FileNotFoundError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def pilots_cpu_s(site: Site) -> float:
    return cpu_s(pilots_of(site, PILOT_UID))


def launchers_cpu_s(site: Site) -> float:
    """Of the daemon and of those that hold payloads; what measures a payload there is part of them."""
    return cpu_s([pid for pid in processes_of(site, 0) if b"airpanda-launcherd" in command_of(pid)])


def test_cost_of_watching(chain: Chain) -> None:
    """By the pilot, and by the launcher that reads for it what only root may see."""
    task = chain.submit("alice", spec("long", argv=["sh", "-c", "sleep 45"], walltime_s=120))
    handles = chain.send_pilots(1)
    wait_for(lambda: chain.call("GET", f"/v1/task/{task['task_id']}/progress")["counts"].get("running"), 60)
    time.sleep(3)
    before, launchers, begin = pilots_cpu_s(chain.site), launchers_cpu_s(chain.site), time.monotonic()
    time.sleep(30)
    took_s = time.monotonic() - begin
    share, root_share = (pilots_cpu_s(chain.site) - before) / took_s, (launchers_cpu_s(chain.site) - launchers) / took_s
    chain.wait(task["task_id"])
    chain.pilots_end(handles)
    how = "one quiet payload, 30 s, a heartbeat every second and the first look into the sandbox in it"
    against = {"bar": 1.0, "launcher": round(100 * root_share, 2)}
    record("pilot: cost of watching", 100 * share, "% of a core", against=against, ratio=100 * share, conditions=how)
    print(f"watching: {100 * share:.2f} % of a core, bar 1 %; the launcher {100 * root_share:.2f} %")


SIDE_BY_SIDE = 8


def test_eight_payloads_side_by_side(chain: Chain, tmp_path: Path) -> None:
    """One pilot: what each costs to start when eight come at once, what eight cost to watch, and the memory."""
    queue = tmp_path / "queues" / "DEMO.toml"
    slot = f"[slot]\ncores = {SIDE_BY_SIDE}\nmemory_mib = 8000\ndisk_mib = 8000\nwalltime_s = 86400\n"
    queue.write_text(f"{queue.read_text()}max_payloads = {SIDE_BY_SIDE}\n{slot}")
    argv = ["sh", "-c", "date +%s.%N; sleep 45; date +%s.%N"]
    asked = {"memory_mib": 100, "disk_mib": 100, "walltime_s": 120}
    jobs = [spec(f"j{i}", argv=argv, **asked) for i in range(SIDE_BY_SIDE)]
    task = chain.submit("alice", *jobs)
    handles = chain.send_pilots(1)
    progress = f"/v1/task/{task['task_id']}/progress"
    wait_for(lambda: chain.call("GET", progress)["counts"].get("running") == SIDE_BY_SIDE, 90)
    time.sleep(3)
    before, begin = pilots_cpu_s(chain.site), time.monotonic()
    time.sleep(20)
    share = (pilots_cpu_s(chain.site) - before) / (time.monotonic() - begin) / SIDE_BY_SIDE
    rss_mib = peak_rss_mib(chain.site)
    chain.wait(task["task_id"], 120)
    chain.pilots_end(handles)
    before_s, after_s = overheads(chain, handles, task["first_panda_id"], SIDE_BY_SIDE)
    how = f"{SIDE_BY_SIDE} jobs that begin and end at once in one pilot, on this machine's two cores"
    put_down("first instruction, eight at once", before_s, 0.6, how)
    put_down("final report, eight at once", after_s, 0.4, how)
    against = {"bar": 1.0, "RSS MiB": round(rss_mib, 1)}
    how = "each of eight quiet payloads, 20 s, a heartbeat every second for each"
    name = "pilot: cost of watching each of eight"
    record(name, 100 * share, "% of a core", against=against, ratio=100 * share, conditions=how)
    print(f"watching each of eight: {100 * share:.2f} % of a core, bar 1 %; memory {rss_mib:.1f} MiB, bar 80")


def test_start_from_a_bundle(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "airpanda.pyz")
    record("pilot: bundle", bundle.size / 1024, "KiB", conditions=f"{bundle.files} files, without cryptography")
    ca_dir = tmp_path / "ca"
    ca_dir.mkdir()
    seconds = []
    for number in range(STARTS):
        place = tmp_path / f"p{number}"
        place.mkdir(mode=0o700)
        with fake_dispatcher() as fake:
            slot = {"cores": 1, "memory_mib": 100, "disk_mib": 100, "walltime_s": 3600}
            values = {"pilot_id": 1, "tag": "t", "token": TOKEN, "queue": "TEST", "dispatcher_url": fake.url}
            values |= {"ca_dir": str(ca_dir), "proxy": "/nowhere", "identity_policy": "OPTIONAL", "slot": slot}
            config = place / "pilot.json"
            config.touch(mode=0o600)
            config.write_text(json.dumps(values | {"idle_limit_s": 0.1}))
            argv = ["sh", str(WRAPPER), "--code", str(bundle.path), "--python", sys.executable, str(config)]
            begin = time.monotonic()
            process = subprocess.Popen(argv, env={"PATH": "/usr/bin:/bin"}, stderr=subprocess.DEVNULL)
            wait_for(lambda fake=fake: fake.offers, 60)
            seconds.append(time.monotonic() - begin)
            process.wait(60)
    how = f"{STARTS} cold starts: checksum, unpacking, probe, first acquire; contained switch, no benchmark"
    put_down("bundle start to first acquire", seconds, 2.0, how)
