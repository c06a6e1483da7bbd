"""One cycle of the pilot factory for 100 queues with 100 000 pilots on record: how long, and how much memory.

Real: PostgreSQL, the gateway process over TLS, the factory in a process of its own. The computing elements answer at
once from memory: what they cost is measured with them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.record import record
from support.dispatcher import job_database, template_database
from support.factory_rig import FactoryRig, factory_rig
from support.pki import Pki
from support.postgres import Database, postgres

from airpanda.computing.queues import PandaQueue, parse_queue

__all__ = ["job_database", "postgres", "template_database"]
QUEUES, PILOTS, BAR_S, BAR_MIB = 100, 1000, 5.0, 150.0
QUEUE = """
[queue]
name = "Q{n:03}"
[ce]
kind = "local"
directory = "/nowhere"
[pilot]
code = "/c"
dispatcher_url = "https://localhost:1"
ca_dir = "/ca"
proxy = "/p"
[factory]
enabled = true
max_pilots = 2000
"""
FILL = """
INSERT INTO panda_batch (tag, queue, ce, state, intended_by, intent_key)
SELECT 't-' || q || '-' || b, 'Q' || lpad(q::text, 3, '0'), 'local:Q' || lpad(q::text, 3, '0'), 'submitted', 'client:x',
       'client:x|' || q || '|factory/' || b || '/c'
FROM generate_series(0, %s) q, generate_series(1, 20) b;
INSERT INTO panda_pilot (batch_id, queue, ce, ce_job_id, state, ce_state, node, created_at, registered_at, last_seen_at,
                         last_job_at, ended_at, jobs_done)
SELECT b.batch_id, b.queue, b.ce, b.tag || '-' || n,
       (ARRAY['submitted', 'started', 'started', 'finished'])[1 + n %% 4],
       (ARRAY['queued', 'running', 'running', 'done'])[1 + n %% 4], 'wn' || n %% 20,
       now() - interval '1 h', CASE WHEN n %% 4 > 0 THEN now() - interval '50 min' END,
       CASE WHEN n %% 4 > 0 THEN now() - interval '10 min' END, CASE WHEN n %% 4 > 0 THEN now() - interval '10 min' END,
       CASE WHEN n %% 4 = 3 THEN now() - interval '9 min' END, n %% 7
FROM panda_batch b, generate_series(1, %s) n;
ANALYZE panda_pilot; ANALYZE panda_batch;
"""
FACTORY = """
import json, sys, time
from pathlib import Path
import httpx, ssl
from airpanda.computing.elements import Limits, PilotJobState, Status
from airpanda.hooks.factory import Factory
from airpanda.hooks.asking import send_once

url, token_file, ca_dir, queues, directory, database = *sys.argv[1:4], int(sys.argv[4]), *sys.argv[5:]
STATES = [PilotJobState.QUEUED, PilotJobState.RUNNING, PilotJobState.RUNNING, PilotJobState.DONE]


class Element:
    name, limits = "c", Limits(10_000, 10_000, 0)
    changed = False

    def status(self, handles):
        state = {True: [PilotJobState.RUNNING] * 3, False: STATES}[Element.changed]
        return {h: Status(state[int(h.rpartition("-")[2]) % 4]) for h in handles}

    def submit(self, batch):
        raise AssertionError("no demand, no pilots")

    def close(self):
        pass


def others_cpu_s():
    # CPU seconds of the gateway's process, and of PostgreSQL's that serve this database.
    sums = [0.0, 0.0]
    for path in Path("/proc").glob("[0-9]*"):
        try:
            argv = (path / "cmdline").read_bytes()
            ours = [directory.encode() in argv and b"gateway" in argv, database.encode() in argv.split(b" ")]
            if any(ours):
                spent = (path / "stat").read_text().rpartition(")")[2].split()[11:13]
                sums[ours.index(True)] += sum(map(int, spent)) / 100
        except OSError:
            pass
    return sums


def mib():
    # Not getrusage: its maximum is also that of the process which has started this one.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


http = httpx.Client(base_url=url, verify=ssl.create_default_context(capath=ca_dir), trust_env=False, timeout=60,
                    headers={"Authorization": "Bearer " + Path(token_file).read_text()})
factory = Factory(lambda call: send_once(call, http, "x"), lambda q, w: Element(), Path("w"), "bench")
before = mib()
times, cpu, others = [], [], []
for turn in range(3):
    Element.changed = turn == 2
    began, used, theirs = time.monotonic(), time.process_time(), others_cpu_s()
    for n in range(queues):
        factory.cycle(f"Q{n:03}")
    times.append(time.monotonic() - began)
    cpu.append(time.process_time() - used)
    others.append([b - a for a, b in zip(theirs, others_cpu_s())])
mib_after = mib()
import airflow.sdk
from airpanda.hooks.panda import PandaHook
print(json.dumps({"quiet_s": times[1], "first_s": times[0], "news_s": times[2],
                  "quiet_cpu_s": [cpu[1], *others[1]], "news_cpu_s": [cpu[2], *others[2]],
                  "before_mib": before, "mib": mib_after, "airflow_mib": mib()}))
"""


@pytest.fixture
def rig(job_database: Database, tmp_path: Path) -> Iterator[FactoryRig]:
    queues: list[PandaQueue] = [parse_queue(QUEUE.format(n=n), "q.toml") for n in range(QUEUES)]
    with factory_rig(job_database, Pki(tmp_path / "pki"), tmp_path, *queues) as rig:
        rig.sql(FILL, QUEUES - 1, PILOTS // 20)
        yield rig


def run(rig: FactoryRig) -> dict[str, Any]:
    token = rig.directory / "token"
    token.write_text(rig.gateway.client_token())
    argv = [sys.executable, "-c", FACTORY, rig.gateway.url, str(token), str(rig.gateway.pki.ca_dir), str(QUEUES)]
    argv += [str(rig.directory), rig.database.name]
    plugins = str(Path(__file__).resolve().parents[2] / "plugins")
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": plugins}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_cycle_for_a_hundred_queues(rig: FactoryRig) -> None:
    assert rig.sql("SELECT count(*) AS n FROM panda_pilot") == [{"n": QUEUES * PILOTS}]
    found = run(rig)
    what = (
        f"{QUEUES} queues one after the other, {QUEUES * PILOTS} pilots on record, three quarters live; elements that"
    )
    what = f"{what} answer from memory; PostgreSQL, gateway and factory on the same cores"
    spent = "CPU time of the factory {:.2f} s, of the gateway {:.2f} s, of PostgreSQL {:.2f} s"
    record(
        "factory, cycle for 100 queues, nothing new", found["quiet_s"], "s", against={"bar": BAR_S},
        ratio=found["quiet_s"] / BAR_S, conditions=f"{what}; {spent.format(*found['quiet_cpu_s'])}",
    )  # fmt: skip
    record(
        "factory, cycle for 100 queues, a quarter of the pilots changed", found["news_s"], "s",
        conditions=f"{what}; {spent.format(*found['news_cpu_s'])}",
    )  # fmt: skip
    record(
        "factory, memory of its process after that", found["mib"], "MiB",
        against={"bar": BAR_MIB, "before the first cycle": round(found["before_mib"], 1),
                 "with Airflow's SDK in it, as in a DAG's task": round(found["airflow_mib"], 1)},
        ratio=found["mib"] / BAR_MIB, conditions=what,
    )  # fmt: skip
    assert found["quiet_s"] > 0
