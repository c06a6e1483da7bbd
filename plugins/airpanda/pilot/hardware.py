"""What a node's processor and accelerators are, and what runs on it; and what of that a job may ask for.

Source: the x86-64 psABI, micro-architecture levels (PanDA reports them as ``cpu_architecture_level``); Linux,
Documentation/ABI of ``/sys/class/kfd``: AMD's compute devices; ``nvidia-smi -L``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KFD = Path("/sys/class/kfd/kfd/topology/nodes")
INTERPRETERS = ("python3", "perl", "bash")
RUNTIMES = ("apptainer", "singularity", "podman", "docker", "bwrap")
_MAX_GPUS = 64
_VERSION_S = 3.0
_NEW_USER_NAMESPACE = 0x10000000
_LEVELS = (
    ("x86_64-v2", {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
    ("x86_64-v3", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
    ("x86_64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)


def architecture(machine: str, cpuinfo: str) -> str:
    """The machine's, with its level where it is an x86-64 of one above the first."""
    flags = next(
        (set(line.partition(":")[2].split()) for line in cpuinfo.splitlines() if line.startswith("flags")), set()
    )
    level = machine
    for name, needed in _LEVELS if machine == "x86_64" else ():
        if not needed <= flags:
            break
        level = name
    return level


def nvidia_gpus() -> list[str]:
    """NVIDIA's devices as ``nvidia-smi -L`` names them, without their serial numbers; none where it is absent."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, "-L"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = done.stdout.decode("utf-8", "replace").splitlines() if done.returncode == 0 else []
    return [line.partition(" (UUID")[0][:200] for line in lines[:_MAX_GPUS] if line.startswith("GPU ")]


def amd_gpus(nodes: Path = KFD) -> list[str]:
    """AMD's compute devices by the kernel's word: no program is needed. A topology node without SIMDs is a CPU."""
    found = []
    for place in sorted(nodes.glob("*"))[:_MAX_GPUS]:
        values = _properties(_text(place / "properties"))
        if values.get("simd_count", 0) > 0:
            target, device = values.get("gfx_target_version", 0), values.get("device_id", 0)
            found.append(f"AMD {_gfx(target)} (device 0x{device:04x})")
    return found


def versions(names: Iterable[str]) -> dict[str, str]:
    """The programs of these that are there, with the first line of what they say of their version; all at once."""
    paths = {name: path for name in names if (path := shutil.which(name))}
    with ThreadPoolExecutor(max(1, len(paths))) as pool:
        return dict(zip(paths, pool.map(_version, paths.values())))


def user_namespaces_work() -> bool:
    """Whether this account can make one: by doing it. Settings tell less, since there are several that forbid it."""
    code = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare({_NEW_USER_NAMESPACE}) != 0)"
    try:
        done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def found_features(transcript: Mapping[str, object]) -> list[str]:
    """What jobs may ask for of what the probe has found: ``has:`` a runtime, GPUs, namespaces; ``arch:`` and levels."""
    runtimes = transcript.get("runtimes")
    features = [f"has:{name}" for name in (runtimes if isinstance(runtimes, dict) else {}) if name != "bwrap"]
    features += ["has:user-namespaces"] if transcript.get("user_namespaces") else []
    gpus = transcript.get("gpus")
    makers = sorted(
        {"amd" if name.startswith("AMD ") else "nvidia" for name in (gpus if isinstance(gpus, list) else [])}
    )
    features += [*(f"has:gpu-{maker}" for maker in makers), *(["has:gpu"] if makers else [])]
    best = str(transcript.get("architecture", ""))
    levels = [name for name, _ in _LEVELS]
    below = levels[: levels.index(best) + 1] if best in levels else []
    features += [f"arch:{name}" for name in [*(["x86_64"] if below else [best] if best else []), *below]]
    return features


def _properties(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isascii() and pair[1].isdigit()}


def _gfx(target: int) -> str:
    """The kernel's number 90010 is what everybody calls gfx90a: minor and stepping in hexadecimal."""
    return f"gfx{target // 10000}{target // 100 % 100:x}{target % 100:x}"


def _version(path: str) -> str:
    for option in ("--version", "-version"):
        try:
            done = subprocess.run(
                [path, option],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_VERSION_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        lines = [line.strip() for line in done.stdout[:4096].decode("utf-8", "replace").splitlines() if line.strip()]
        if done.returncode == 0 and lines:
            return lines[0].replace("\0", "\ufffd")[:200]
    return ""


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""
