"""How much of its time a batch system has left to this pilot: what each says in its own way, read without trust.

Source: sbatch(1), ``SLURM_JOB_END_TIME``; qsub(1B), ``PBS_WALLTIME``; Grid Engine: qstat(1), queue_conf(5), ``h_rt``
and ``s_rt``; HTCondor's manual, job ClassAd attributes and the environment of a job (``_CONDOR_JOB_AD``,
``_CONDOR_MACHINE_AD``). ``MaxRuntime`` is no attribute of HTCondor's own; sites set it, and DIRAC reads it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Callable, Optional

MAX_TEXT = 1024 * 1024
_COMMAND_S = 10.0
_LIMITS = re.compile(r"^hard resource_list:\s*(\S+)\s*$", re.MULTILINE)
_QUEUE_LIMIT = re.compile(r"^([hs]_rt)\s+(\S+)\s*$", re.MULTILINE)
_CLOCK = re.compile(r"(?:(\d{1,6}):)?(\d{1,6}):(\d{1,6})|(\d{1,12})")
_ATTRIBUTE = re.compile(r"^([A-Za-z_]\w{0,99})\s*=\s*(-?\d{1,15})(?:\.\d*)?\s*$", re.MULTILINE)

Run = Callable[[Sequence[str]], str]
Read = Callable[[str], str]


def time_left_s(environment: Mapping[str, str], now: float, *, run: Run, read: Read) -> Optional[float]:
    """What the batch system leaves, in seconds; None where none says anything. The least, where several do.

    Args:
        environment: of the pilot, as the batch system made it.
        now: Unix time.
        run: the output of a command; empty where it fails.
        read: the text of a file; empty where it cannot be read.
    """
    said = [
        _until(_number(environment.get("SLURM_JOB_END_TIME", "")), now),
        _number(environment.get("PBS_WALLTIME", "")),  # from the start, which is about now
        _gridengine_s(environment, run),
        *_condor_s(environment, now, read),
    ]
    known = [seconds for seconds in said if seconds is not None]
    return max(0.0, min(known)) if known else None


def gridengine_limit_s(qstat: str, queue: str = "") -> Optional[float]:
    """The wall time of a job by ``qstat -j``, and of its queue by ``qconf -sq``: the soft limit where it is less."""
    asked = _LIMITS.search(qstat[:MAX_TEXT])
    pairs = [item.split("=", 1) for item in (asked[1].split(",") if asked else ()) if "=" in item]
    pairs += [list(match.groups()) for match in _QUEUE_LIMIT.finditer(queue[:MAX_TEXT])]
    found = [_clock_s(value) for name, value in pairs if name in ("h_rt", "s_rt")]
    known = [seconds for seconds in found if seconds is not None]
    return min(known) if known else None


def condor_numbers(ad: str) -> dict[str, int]:
    """The attributes of a ClassAd in its long form that are plain numbers, by their names in lower case."""
    return {match[1].lower(): int(match[2]) for match in _ATTRIBUTE.finditer(ad[:MAX_TEXT])}


def run_command(argv: Sequence[str]) -> str:
    """Its output; nothing where it cannot be run, fails, or takes too long."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout[:MAX_TEXT].decode("utf-8", "replace") if done.returncode == 0 else ""


def _gridengine_s(environment: Mapping[str, str], run: Run) -> Optional[float]:
    """From the job's start, which is about now."""
    job, queue = environment.get("JOB_ID", ""), environment.get("QUEUE", "")
    qstat = shutil.which("qstat") if "SGE_ROOT" in environment and job.isascii() and job.isdigit() else None
    if qstat is None:
        return None
    qconf = shutil.which("qconf") if re.fullmatch(r"[A-Za-z0-9][\w.@-]*", queue) else None
    return gridengine_limit_s(run([qstat, "-j", job]), run([qconf, "-sq", queue]) if qconf else "")


def _condor_s(environment: Mapping[str, str], now: float, read: Read) -> list[Optional[float]]:
    """By the job's limits since its start, and by the end of the machine (a glidein's, where it is one)."""
    job = condor_numbers(read(environment["_CONDOR_JOB_AD"])) if environment.get("_CONDOR_JOB_AD") else {}
    machine = condor_numbers(read(environment["_CONDOR_MACHINE_AD"])) if environment.get("_CONDOR_MACHINE_AD") else {}
    start = job.get("jobcurrentstartdate")
    limits = [job.get(name) for name in ("allowedexecuteduration", "allowedjobduration", "maxruntime")]
    left = [limit - (now - start if start is not None else 0.0) for limit in limits if limit is not None and limit > 0]
    return [*left, _until(machine.get("glidein_todie"), now)]


def _until(moment: Optional[float], now: float) -> Optional[float]:
    return None if moment is None else moment - now


def _number(text: str) -> Optional[float]:
    return float(int(text[:18])) if text.isascii() and text.isdigit() else None


def _clock_s(text: str) -> Optional[float]:
    """``[[h:]m:]s`` as Grid Engine writes a time; None for INFINITY and nonsense."""
    match = _CLOCK.fullmatch(text) if text.isascii() else None
    if match is None:
        return None
    hours, minutes, seconds, plain = match.groups()
    return float(plain) if plain else 3600.0 * int(hours or 0) + 60.0 * int(minutes) + int(seconds)
