"""What is in a JSON body is counted without parsing it, exactly; and what a bad one costs is bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.dispatcher import members
from airpanda.dispatcher.members import MOST_DEPTH, MOST_ELEMENTS, MOST_MEMBERS, Most, surplus

ANY = Most(10**9, 10**9)
TEXT = st.text(alphabet=st.sampled_from('{}[],:"\\a\n\u20ac'), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def counts(value: Any) -> tuple[int, int]:
    """Commas and colons; objects and lists."""
    if not isinstance(value, (dict, list)):
        return 0, 0
    inner = [counts(each) for each in (value.values() if isinstance(value, dict) else value)]
    own = max(0, len(value) - 1) + (len(value) if isinstance(value, dict) else 0)
    return own + sum(n for n, _ in inner), 1 + sum(n for _, n in inner)


@given(value=JSON, window=st.integers(1, 40), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_exact_whatever_stands_in_strings_and_wherever_a_part_ends(
    value: Any, window: int, ascii_only: bool, indent: int | None
) -> None:
    content = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "_WINDOW", window)
        structure = b"".join(members._structure(content))
    found = tuple(sum(map(structure.count, kinds)) for kinds in ((b",", b":"), (b"[", b"{")))
    assert found == counts(value)


def long_list(n: int) -> bytes:
    return b"[" + b"0," * (n - 1) + b"0]"


def wide_object(n: int) -> bytes:
    return b"{" + b",".join(b'"k%d": [{"a": []}]' % i for i in range(n)) + b"}"


@pytest.mark.parametrize(
    ("content", "most", "says"),
    [
        (long_list(MOST_ELEMENTS), ANY, ""),
        (long_list(MOST_ELEMENTS + 1), ANY, "a list with more than 100000 elements"),
        (wide_object(MOST_MEMBERS), ANY, ""),
        (wide_object(MOST_MEMBERS + 1), ANY, "an object with more than 10000 members"),
        (b"[" + wide_object(MOST_MEMBERS + 1), ANY, "an object with more than 10000 members"),
        (b"[" * MOST_DEPTH + long_list(20_000)[1:] + b"]" * (MOST_DEPTH - 1), ANY, ""),
        (b"[" * MOST_DEPTH + b"[0]," + long_list(20_000) + b"]" * MOST_DEPTH, ANY, ""),
        (b"[" * (MOST_DEPTH + 1) + b"0," * 20_000, ANY, "more than 32 levels"),
        (b"[" * 10**6 + b"0," * 20_000, ANY, "more than 32 levels"),
        (long_list(20_000), Most(19_999, 1), ""),
        (long_list(20_000), Most(19_998, 1), "more than 19998 values"),
        (b"[" + b"[],{}," * 9_000 + b"0]", Most(10**6, 18_001), ""),
        (b"[" + b"[],{}," * 9_000 + b"0]", Most(10**6, 18_000), "more than 18000 objects and lists"),
        (json.dumps([",:[]{}\\\"" * 10**6]).encode(), Most(0, 1), ""),
        (b'"' + b'\\"' * 10**6 + b",:" * 10**5, Most(0, 0), ""),
        (b"\\" * 3_000_000 + b",:" * 10**5, Most(0, 0), "more than 0 values"),
        (b"", Most(0, 0), ""),
    ],
)  # fmt: skip
def test_what_is_too_much(content: bytes, most: Most, says: str) -> None:
    assert surplus(content, most) == says


def test_what_means_something_is_not_too_much() -> None:
    files = {"inputs": [{"lfn": "a", "source": "panda:123456/a"}] * 3, "outputs": [{"lfn": "b"}, {"lfn": "c"}]}
    job = json.dumps({"job_name": "j-1", "argv": ["python3", "run.py", "--seed", "1"], "env": {"A": "1"}, **files})
    jobs = b"[" + b",".join([job.encode()] * 100_000) + b"]"
    assert surplus(b'{"task_key": "k", "ti": {"dag_id": "d"}, "jobs": ' + jobs + b"}", members.MANY) == ""
    sample = json.dumps(
        {"at_s": 1.0, "cpu_s": 1.0, "rss_mib": 2.0, "read_mib": 0.5, "written_mib": 0.0, "disk_mib": 1.0}
    )
    report = b'{"samples": [' + b",".join([sample.encode()] * 200) + b"]}"
    reports = b'{"job_list": [' + b",".join([report] * 105) + b"]}"
    assert len(reports) > 1.9e6
    assert surplus(reports, members.FEW) == ""


MEASURED = """
import asyncio, sys
import httpx
from fastapi import APIRouter, FastAPI
from airpanda.dispatcher import problems
from airpanda.dispatcher.lean import LargeLeanRoute, LeanRoute
from airpanda.messages import BulkReport, JobSubmission

MIB = 2**20

def memory(what):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(what))

async def submit(wanted: JobSubmission) -> int:
    return len(wanted.jobs)

async def report(wanted: BulkReport) -> int:
    return 0

app = FastAPI()
for name, kind, endpoint in (("submit", LargeLeanRoute, submit), ("report", LeanRoute, report)):
    router = APIRouter(route_class=kind)
    router.post("/" + name)(endpoint)
    app.include_router(router)
problems.install(app)

def filled(n, begin, unit, end):
    return begin + unit * ((n - len(begin) - len(end)) // len(unit)) + end

def bodies():
    yield "submit", b"{" + b",".join(b'"%x":0' % n for n in range(64 * MIB // 10)) + b"}"
    yield "submit", b'{"jobs":[{"env":{' + b",".join(b'"%x":0' % n for n in range(64 * MIB // 10)) + b"}}]}"
    for unit in (b"0,", b"[],", b"[0],", b'{"":0},'):
        yield "submit", filled(64 * MIB, b'{"jobs":[', unit, b"0]}")
        yield "submit", filled(64 * MIB, b'{"jobs":[', b"[" + unit * 19 + b"0],", b"0]}")
        yield "report", filled(2 * MIB, b'{"job_list":[', unit, b"0]}")
        yield "report", filled(2 * MIB, b'{"job_list":[', b"[" + unit * 19 + b"0],", b"0]}")
    yield "submit", filled(7 * MIB, b'{"jobs":[', b"[" + b'{"":0},' * 19 + b"0],", b"0]}")  # within what may be

async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as http:
        for name, body in bodies():
            open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
            before = memory("VmRSS:")
            answer = await http.post("/" + name, content=body, headers={"Content-Type": "application/json"})
            print(name, len(body) // MIB, answer.status_code, memory("VmHWM:") - before, answer.json()["detail"])

asyncio.run(main())
"""


def test_a_body_that_means_nothing_costs_no_more_than_one_that_does() -> None:
    """Peaks of a process of its own. 64 MiB of surplus keys took 7 GB, of lists in a list 19 GB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=300, check=False,
        env={"PYTHONPATH": str(Path(members.__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 19
    *refused, parsed = lines
    _, _, status, peak_mib, _ = parsed.split(" ", 4)
    assert status == "422", parsed
    assert int(peak_mib) < 800, parsed
    for line in refused:
        _, _, status, peak_mib, says = line.split(" ", 4)
        assert (status, says.startswith("the body has ")) == ("413", True), line
        assert int(peak_mib) < 300, line  # one copy of the body is this client's
