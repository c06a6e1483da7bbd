"""Pilots submitted our way, and one by one as everybody begins: the same pilots, the same daemons, the same minutes.

The slow way is measured on a few pilots and said to be linear, which it is. ``AIRPANDA_BENCH_PEERS`` names the
interpreter of an environment with DIRAC and psij-python, on a path that the worker node sees (such as below /opt).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import httpx
import pytest
from bench.record import record
from support.arc_rig import ArcRig, make_arc_rig
from support.batch_rig import Rig, make_rig
from support.elements import SLEEP, batch
from support.gram_rig import GramRig, make_gram_rig
from support.places import open_path

from airpanda.computing.arc import ArcElement
from airpanda.computing.arc_description import describe, job_name
from airpanda.computing.elements import ComputingElement, PilotBatch
from airpanda.computing.local import LocalElement
from airpanda.computing.queues import parse_queue
from airpanda.core.secret import Secret
from airpanda.myproxy.tls import client_context

__all__ = ["open_path"]
pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(1800)]
SIZES = (1, 100, 1000)
FEW = 20
_tags = iter(range(10**6))


@pytest.fixture(scope="module", name="rig")
def _rig() -> Iterator[Rig]:
    for rig in make_rig():
        yield rig
        rig.tidy()


@pytest.fixture(scope="module", name="arc")
def _arc() -> Iterator[ArcRig]:
    for rig in make_arc_rig():
        rig.arc.stop("engine")  # what is measured is the taking of jobs; started ones would share the two cores
        yield rig


@pytest.fixture(scope="module", name="gram")
def _gram() -> Iterator[GramRig]:
    yield from make_gram_rig()


def seconds(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def fresh(n: int) -> PilotBatch:
    return batch(f"bench-{next(_tags)}", *range(n))


def ours(element: ComputingElement, rounds: int = 3) -> dict[int, float]:
    """Median seconds for each size, warm."""
    element.submit(fresh(1))
    return {n: median(seconds(lambda n=n: element.submit(fresh(n))) for _ in range(rounds)) for n in SIZES}  # type: ignore[misc]


def show(name: str, mine: dict[int, float], naive_s: float, how: str, bar: float) -> None:
    """Record each size; ``naive_s`` is the slow way's seconds a pilot."""
    for n, spent in mine.items():
        ratio = naive_s * n / spent
        record(
            f"computing, {name}, {n} pilots", spent, "s",
            against={how: round(naive_s * n, 3), "bar, ratio at 1000": bar}, ratio=ratio,
            conditions=f"median of 3, warm; the other way measured on {FEW} pilots, linear",
        )  # fmt: skip
    assert naive_s * 1000 > mine[1000], "slower than one by one: something is broken"


def test_slurm_over_ssh(rig: Rig) -> None:
    def one_by_one() -> None:
        for _ in range(FEW):
            element = rig.element(SLEEP, "ssh", max_pilots=100_000)
            element.submit(fresh(1))
            element.close()

    def sbatch_by_ssh() -> None:
        """What scripts do: a connection for each pilot, one sbatch in it, nothing else."""
        for _ in range(FEW):
            element = rig.element(SLEEP, "ssh")
            transport = element._transport
            done = transport.run(["sbatch", "--parsable", "--hold", "--wrap", "sleep 60"], timeout_s=30)
            assert done.exit_code == 0, done.stderr
            element.close()

    element = rig.element(SLEEP, "ssh", max_pilots=100_000, options=["--hold"])
    mine = ours(element)
    show("Slurm over SSH", mine, seconds(sbatch_by_ssh) / FEW, "a connection and an sbatch for each", 100)
    record(
        "computing, Slurm over SSH, 1000 of our own submissions one by one", seconds(one_by_one) / FEW * 1000, "s",
        conditions=f"a connection and a whole submission for each; {FEW} measured, linear",
    )  # fmt: skip
    handles = list(element.submit(fresh(1000)).handles.values())
    spent = median(seconds(lambda: element.status(handles)) for _ in range(5))
    record("computing, Slurm over SSH, status of 1000", spent, "s", against={"bar": 0.2}, ratio=spent / 0.2)


def test_arc(arc: ArcRig) -> None:
    element = arc.element(SLEEP, max_pilots=100_000)
    element.submit(fresh(1))
    before = element.requests
    handles = list(element.submit(fresh(1000)).handles.values())
    record("computing, ARC, requests for 1000 pilots", element.requests - before, "requests", against={"bar": 3})
    spent = median(seconds(lambda: element.status(handles)) for _ in range(5))
    record(
        "computing, ARC, status of 1000", spent, "s", against={"bar": 0.2}, ratio=spent / 0.2,
        conditions=f"of {len(element._rest.jobs())} jobs at the CE; job engine stopped",
    )  # fmt: skip
    mine = ours(element)
    posts = one_post_each(element, new_connection=False)
    fresh_posts = one_post_each(element, new_connection=True)
    show("ARC", mine, fresh_posts, "a connection and a POST for each", 10)
    record(
        "computing, ARC, 1000 pilots by one POST each on one connection", posts * 1000, "s",
        against={"ours": mine[1000]}, ratio=posts * 1000 / mine[1000], conditions=f"{FEW} measured, linear",
    )  # fmt: skip


def test_gram(gram: GramRig) -> None:
    """Our pilots bring 0600 secrets, can be found by tag, and are looked at together; the slow way's do not."""
    element = gram.element("sleep 600 & wait $!\n", max_pilots=100_000)
    element.submit(fresh(1))

    def globusrun_each(*arguments: str) -> Callable[[], object]:
        def run() -> None:
            for _ in range(FEW):
                element._gram._globusrun(*arguments, timeout_s=60)

        return run

    rsl = "&(executable=/bin/sleep)(arguments=600)"
    naive = seconds(globusrun_each("-q", "-batch", "-r", gram.gram.contact, rsl)) / FEW
    made = fresh(FEW)
    spent = seconds(lambda: element.submit(made))
    record(
        f"computing, GRAM5, {FEW} pilots", spent, "s",
        against={"a globusrun -batch for each": round(naive * FEW, 3)}, ratio=naive * FEW / spent,
        conditions="fork job manager; one run",
    )  # fmt: skip
    handles = list(element.submit(made).handles.values())
    contact = next(iter(element._contacts.values()))
    one = seconds(globusrun_each("-status", contact)) / FEW
    spent = seconds(lambda: element.status(handles))
    record(
        f"computing, GRAM5, status of {FEW}", spent, "s",
        against={"a globusrun -status for each": round(one * FEW, 3)}, ratio=one * FEW / spent,
        conditions="ours includes what the pilots' files say, by a job at the CE",
    )  # fmt: skip
    spent = seconds(lambda: element.cancel(handles))
    record(
        f"computing, GRAM5, cancel of {FEW} that run", spent, "s", conditions="a mark at the CE; they end within 5 s"
    )


def one_post_each(element: ArcElement, *, new_connection: bool) -> float:
    """Seconds a pilot, as clients are usually written: the same descriptions, each in a request of its own."""
    one, delegation, rest = fresh(FEW), element._delegated(), element._rest
    texts = [
        describe(element._queue, "", delegation.id, {job_name(one.tag, p): element._start(one, p, delegation.key)})
        for p in range(FEW)
    ]
    ca_dir, url = Path(element._ce.ca_dir), f"{element._ce.url}/rest/1.0/jobs?action=new"

    def send() -> None:
        client = httpx.Client(verify=client_context(ca_dir, rest.credential, check_hostname=True), trust_env=False)
        for text in texts:
            answer = client.post(url, content=text, headers={"Content-Type": "application/xml"}, timeout=60)
            assert answer.status_code == 201
            if new_connection:
                client.close()
                context = client_context(ca_dir, rest.credential, check_hostname=True)
                client = httpx.Client(verify=context, trust_env=False)
        client.close()

    return seconds(send) / FEW


def test_local(open_path: Path) -> None:
    text = f"""
[queue]
name = "BENCH"
identity_policy = "NEVER"
[ce]
kind = "local"
directory = "{open_path}/pilots"
account = "nobody"
max_pilots = 100000
[pilot]
code = "/nowhere"
dispatcher_url = "http://localhost:1"
ca_dir = "/nowhere"
proxy = "/nowhere"
"""
    element = LocalElement(parse_queue(text, "BENCH.toml"), "exit 0\n")

    def one_by_one() -> None:
        for _ in range(FEW):
            element.submit(fresh(1))

    mine = ours(element)
    show("local", mine, seconds(one_by_one) / FEW, "a call for each", 2)
    record("computing, local, 100 pilots against the bar", mine[100], "s", against={"bar": 2.0}, ratio=mine[100] / 2.0)
    many = PilotBatch("bench-status", {pilot: Secret("t") for pilot in range(1000)})
    handles = list(element.submit(many).handles.values())
    spent = median(seconds(lambda: element.status(handles)) for _ in range(5))
    record("computing, local, status of 1000", spent, "s", against={"bar": 0.2}, ratio=spent / 0.2)


_DIRAC = """
import importlib.util, json, os, sysconfig, time
place = sysconfig.get_paths()["purelib"] + "/DIRAC/Resources/Computing/BatchSystems/SLURM.py"  # it stands alone
spec = importlib.util.spec_from_file_location("slurm", place)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
SLURM = module.SLURM
job = os.path.join(os.getcwd(), "job.sh")
open(job, "w").write("#!/bin/sh\\nsleep 60\\n")
os.chmod(job, 0o755)
start = time.perf_counter()
answer = SLURM().submitJob(Executable=job, NJobs=N, OutputDir=os.getcwd(), ErrorDir=os.getcwd(), Queue="grid",
    SubmitOptions="--hold --mem=100", JobStamps=["%032x" % i for i in range(N)], NumberOfProcessors=1, WholeNode=False)
spent = time.perf_counter() - start
assert answer["Status"] == 0, answer
print(json.dumps(spent))
"""
_PSIJ = """
import json, time
from psij import Job, JobExecutor, JobSpec, JobAttributes, ResourceSpecV1
from datetime import timedelta
executor = JobExecutor.get_instance("slurm")
jobs = [Job(JobSpec(executable="/bin/sleep", arguments=["60"], attributes=JobAttributes(queue_name="grid",
        duration=timedelta(minutes=5)))) for _ in range(N)]
start = time.perf_counter()
for job in jobs:
    executor.submit(job)
print(json.dumps(time.perf_counter() - start), flush=True)
import os
os._exit(0)
"""


@pytest.mark.parametrize(("name", "program"), [("DIRAC's SLURM class", _DIRAC), ("PSI/J", _PSIJ)])
def test_a_peer_on_the_same_slurm(rig: Rig, name: str, program: str) -> None:
    python = os.environ.get("AIRPANDA_BENCH_PEERS")
    if python is None:
        pytest.skip("NOT MEASURED: AIRPANDA_BENCH_PEERS names no interpreter with DIRAC and psij-python")
    argv = [*rig.site.node.enter_argv(), "env", python, "-c", f"N = {FEW}\n{program}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env={"PATH": "/usr/bin:/bin"})
    if done.returncode != 0:
        pytest.skip(f"NOT MEASURED: {name} does not run: {done.stderr.strip()[-300:]}")
    theirs = json.loads(done.stdout.strip().splitlines()[-1]) / FEW
    element = rig.element(SLEEP, "local", max_pilots=100_000, options=["--hold"])
    mine = ours(element)[1000] / 1000
    record(
        f"computing, Slurm on its own node, 1000 pilots against {name}", mine * 1000, "s",
        against={name: round(theirs * 1000, 3)}, ratio=theirs / mine,
        conditions=f"the peer measured on {FEW} jobs, linear, on the submit host; ours enters the node for each batch",
    )  # fmt: skip
