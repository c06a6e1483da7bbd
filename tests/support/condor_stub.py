"""A stub of a schedd for HTCondor's real bindings: ``Schedd`` and ``Collector`` are replaced, all else is theirs.

Run in front of a program: ``python -I -c BOOT PLACE PROGRAM``. Jobs are kept in the directory PLACE and run as
processes of this account, each in a sandbox with its spooled files. It imitates no authentication, matchmaking, limits
or file transfer; what a file ``down``, ``refuse`` or ``cut`` in PLACE holds is raised by the schedd.
"""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TOKEN = "stub-token"
OWNER = "pilot"
_TESTS = str(Path(__file__).parent.parent)
BOOT = f"import sys; sys.path.insert(0, {_TESTS!r}); from support.condor_stub import main; main()"


class StubResult:
    def __init__(self, cluster: int, place: Path, description: Any, copies: int) -> None:
        self.number, self.place, self.description, self.copies = cluster, place, description, copies

    def cluster(self) -> int:
        return self.number


class StubSchedd:
    """The methods that are used, by the names of the bindings."""

    place = Path()

    def __init__(self, location: Any) -> None:
        import htcondor2

        tokens = Path(htcondor2.param["SEC_TOKEN_DIRECTORY"])
        if tokens.stat().st_mode & 0o077 or (tokens / "airpanda").read_text().strip() != TOKEN:
            raise htcondor2.HTCondorException("AUTHENTICATE:1003:Failed to authenticate with any method")

    def query(self, constraint: str, projection: list[str], opts: Any) -> list[Any]:
        import htcondor2

        mine = opts == htcondor2.QueryOpts.DefaultMyJobsOnly
        with self._jobs() as jobs:
            chosen = [job for job in jobs if job["Owner"] == OWNER or not mine]
            return [ad for ad in map(self._ad, chosen) if _matches(constraint, ad)]

    def history(self, constraint: str, projection: list[str], match: int) -> list[Any]:
        ads = map(self._ad, reversed(self._gone()))
        return [ad for ad in ads if _matches(constraint, ad)][:match]

    def submit(self, description: Any, count: int, spool: bool) -> StubResult:
        self._raise("refuse")
        with self._jobs() as jobs:
            cluster = max((job["ClusterId"] for job in [*jobs, *self._gone()]), default=0) + 1
            tag, pilots = (json.loads(description[f"My.{name}"]) for name in ("AirpandaTag", "AirpandaPilots"))
            for proc in range(count):
                ids = {"ClusterId": cluster, "ProcId": proc, "AirpandaTag": tag, "AirpandaPilots": pilots}
                jobs.append(
                    {
                        **ids,
                        "Owner": OWNER,
                        "JobStatus": 5,
                        "HoldReasonCode": 16,
                        "HoldReason": "Spooling input data files",
                    }
                )
        return StubResult(cluster, Path.cwd(), description, count)

    def spool(self, result: StubResult) -> None:
        self._raise("cut")
        names = [name.strip() for name in result.description["transfer_input_files"].split(",")]
        with self._jobs() as jobs:
            for job in [job for job in jobs if job["ClusterId"] == result.number]:
                sandbox = self._sandbox(job)
                sandbox.mkdir(mode=0o700)
                for name in (*names, result.description["executable"]):
                    source = result.place / name.replace("$(Process)", str(job["ProcId"]))
                    (sandbox / source.name).write_bytes(source.read_bytes())
                job |= {"JobStatus": 2, "HoldReasonCode": None, "HoldReason": None, "Pid": self._run(sandbox)}
                job["StageInFinish"] = int(time.time())

    def act(self, action: Any, constraint: str) -> None:
        with self._jobs() as jobs:
            for job in jobs:
                if _matches(constraint, self._ad(job)) and job["JobStatus"] not in (3, 4):
                    job |= {"JobStatus": 3, "RemoveReason": "via condor_rm (by user pilot)"}
                    if "Pid" in job:
                        with suppress(ProcessLookupError):
                            os.killpg(job["Pid"], signal.SIGTERM)

    def edit(self, constraint: str, name: str, value: str) -> None:
        assert (name, value) == ("LeaveJobInQueue", "false")
        with self._jobs() as jobs:
            for job in jobs:
                if _matches(constraint, self._ad(job)):
                    job[name] = False

    # --- within -----------------------------------------------------------------------------------------------

    @contextmanager
    def _jobs(self) -> Iterator[list[dict[str, Any]]]:
        self._raise("down")
        path = self.place / "jobs.json"
        with (self.place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            jobs = json.loads(path.read_text()) if path.exists() else []
            for job in jobs:
                ended = self._sandbox(job) / "exit-code"
                if job["JobStatus"] == 2 and ended.exists():
                    job |= {"JobStatus": 4, "ExitCode": int(ended.read_text())}
            yield jobs
            gone = [job for job in jobs if job["JobStatus"] in (3, 4) and job.get("LeaveJobInQueue") is False]
            path.write_text(json.dumps([job for job in jobs if job not in gone]))
            (self.place / "gone.json").write_text(json.dumps(self._gone() + gone))

    def _gone(self) -> list[dict[str, Any]]:
        path = self.place / "gone.json"
        return json.loads(path.read_text()) if path.exists() else []

    def _raise(self, name: str) -> None:
        import htcondor2

        if (self.place / name).exists():
            raise htcondor2.HTCondorException((self.place / name).read_text())

    def _sandbox(self, job: dict[str, Any]) -> Path:
        return self.place / f"{job['ClusterId']}.{job['ProcId']}"

    @staticmethod
    def _run(sandbox: Path) -> int:
        script = "sh ./start.sh >pilot.log 2>&1; echo $? >code && mv code exit-code"
        return subprocess.Popen(
            ["sh", "-c", script], cwd=sandbox, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, env={"PATH": "/usr/bin:/bin"},
        ).pid  # fmt: skip

    @staticmethod
    def _ad(job: dict[str, Any]) -> Any:
        import classad2

        return classad2.ClassAd({k: classad2.ExprTree("undefined") if v is None else v for k, v in job.items()})


class StubCollector:
    def __init__(self, address: str) -> None:
        pass

    def locate(self, kind: Any, name: str | None) -> str:
        return "location"


def _matches(constraint: str, ad: Any) -> bool:
    import classad2

    return classad2.ExprTree(constraint).eval(ad) is True


def main() -> None:
    import htcondor2

    StubSchedd.place = Path(sys.argv[1])
    htcondor2.Schedd, htcondor2.Collector = StubSchedd, StubCollector
    runpy.run_path(sys.argv[2], run_name="__main__")
