"""What the node is and has, found out before any job is asked for; the transcript goes to the dispatcher."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from airpanda.pilot import hardware
from airpanda.pilot.cgroups import core_limit, memory_limit_bytes
from airpanda.pilot.config import PilotConfig
from airpanda.pilot.timeleft import run_command, time_left_s

_PROGRAMS = ("sudo", "xrdcp", "curl", "tar", "gzip")
_MIB = 1024 * 1024


@dataclass
class Probe:
    """The node's resources in this pilot's reach, and everything else worth knowing in ``transcript``."""

    node: str
    cores: int
    memory_mib: int
    disk_mib: int
    time_left_s: Optional[float] = None
    transcript: dict[str, Any] = field(default_factory=dict)


def run_probe(config: PilotConfig) -> Probe:
    """Look at the node. Never fails: what cannot be found out is absent from the transcript."""
    node = platform.node()[:200] or "unknown"
    cores, memory, disk = usable_cores(), usable_memory_mib(), free_disk_mib(config.scratch)
    transcript: dict[str, Any] = {
        "os": _os_name(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "architecture": hardware.architecture(platform.machine(), _read("/proc/cpuinfo")),
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_mib": memory,
        "disk_mib": disk,
        "python": platform.python_version(),
        "executable": sys.executable,
        "programs": {name: path for name in _PROGRAMS if (path := shutil.which(name))},
        "interpreters": hardware.versions(hardware.INTERPRETERS),
        "runtimes": hardware.versions(hardware.RUNTIMES),
        "user_namespaces": hardware.user_namespaces_work(),
        "uid": os.getuid(),
        "groups": os.getgroups(),
        "soft_limits": _soft_limits(),
    }
    if gpus := hardware.nvidia_gpus() + hardware.amd_gpus():
        transcript["gpus"] = gpus
    if config.benchmark_s > 0:
        transcript["benchmark"] = {"sha256_mib_per_s": round(benchmark(config.benchmark_s), 1)}
    transcript["features"] = hardware.found_features(transcript)
    left_s = time_left_s(os.environ, time.time(), run=run_command, read=_read)
    if left_s is not None:
        transcript["batch_time_left_s"] = round(left_s)
    if config.myproxy:
        transcript["myproxy"] = reach(config.myproxy)
    slot = config.slot
    return Probe(
        node=node,
        cores=min(slot.cores, cores),
        memory_mib=min(slot.memory_mib, memory),
        disk_mib=min(slot.disk_mib, disk),
        time_left_s=left_s,
        transcript=transcript,
    )


def usable_cores() -> int:
    """Cores that the scheduler lets this process use, after affinity and the cgroups' quotas; at least one."""
    cores, limit = len(os.sched_getaffinity(0)), core_limit(_read)
    return max(1, cores if limit is None else min(cores, int(limit)))


def usable_memory_mib() -> int:
    """Memory of the machine or of its cgroups, whichever is less."""
    total, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit_bytes(_read)
    return max(1, (total if limit is None else min(total, limit)) // _MIB)


def free_disk_mib(directory: Path) -> int:
    """Free space for this account where sandboxes are made; 0 where that cannot be told."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(directory).free // _MIB
    return 0


def benchmark(seconds: float) -> float:
    """MiB of SHA-256 in a second on one core: compares nodes with each other, and means nothing else."""
    block, n = bytes(_MIB), 0
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        hashlib.sha256(block).digest()
        n += 1
    return n / (time.monotonic() - begin)


def reach(address: str, timeout_s: float = 5.0) -> dict[str, Any]:
    """Whether ``host:port`` accepts a connection, and how fast."""
    host, _, port = address.rpartition(":")
    begin = time.monotonic()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return {"address": address, "reached": True, "seconds": round(time.monotonic() - begin, 4)}
    except OSError as error:
        return {"address": address, "reached": False, "reason": str(error)}


def _os_name() -> str:
    for line in _read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _cpu_model() -> Optional[str]:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return None


def _soft_limits() -> dict[str, str]:
    names = {"Max cpu time": "cpu_s", "Max open files": "files", "Max processes": "processes", "Max file size": "file"}
    lines = _read("/proc/self/limits").splitlines()
    return {short: line[26:].split()[0] for line in lines for name, short in names.items() if line.startswith(name)}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""
