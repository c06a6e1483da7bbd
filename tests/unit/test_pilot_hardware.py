"""What a node's processor and accelerators are called, from texts of the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airpanda import messages as m
from airpanda.pilot.hardware import amd_gpus, architecture, found_features, user_namespaces_work

V2 = "fpu cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"
V3 = V2 + " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
V4 = V3 + " avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("machine", "flags", "level"),
    [
        ("x86_64", "fpu", "x86_64"),
        ("x86_64", V2, "x86_64-v2"),
        ("x86_64", V3, "x86_64-v3"),
        ("x86_64", V4, "x86_64-v4"),
        ("x86_64", V4.replace(" fma ", " "), "x86_64-v2"),
        ("x86_64", "", "x86_64"),
        ("aarch64", V4, "aarch64"),
    ],
)
def test_the_level_of_a_processor(machine: str, flags: str, level: str) -> None:
    cpuinfo = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t: {V4}\n"
    assert architecture(machine, cpuinfo) == level
    assert architecture(machine, "") == machine


# In the form of /sys/class/kfd/kfd/topology/nodes/N/properties.
CPU = "cpu_cores_count 64\nsimd_count 0\nvendor_id 0\ndevice_id 0\ngfx_target_version 0\n"
MI250 = "cpu_cores_count 0\nsimd_count 416\nvendor_id 4098\ndevice_id 29708\ngfx_target_version 90010\n"


def put(nodes: Path, **texts: str) -> None:
    for name, text in texts.items():
        (nodes / name.strip("n")).mkdir()
        (nodes / name.strip("n") / "properties").write_text(text)


def test_amds_devices_are_told_from_processors(tmp_path: Path) -> None:
    assert amd_gpus(tmp_path / "nowhere") == []
    put(tmp_path, n0=CPU, n1=MI250, n2=MI250.replace("90010", "110001"), n3="simd_count\n\0 \u0665", n4="simd_count -5")
    (tmp_path / "5").mkdir()
    assert amd_gpus(tmp_path) == ["AMD gfx90a (device 0x740c)", "AMD gfx1101 (device 0x740c)"]


@pytest.mark.parametrize(
    ("found", "features"),
    [
        ({}, []),
        ({"architecture": "aarch64", "user_namespaces": True}, ["has:user-namespaces", "arch:aarch64"]),
        ({"runtimes": {"apptainer": "1.3", "bwrap": ""}, "architecture": "x86_64"}, ["has:apptainer", "arch:x86_64"]),
        (
            {"gpus": ["GPU 0: NVIDIA A100", "AMD gfx90a (device 0x740c)"], "architecture": "x86_64-v3"},
            ["has:gpu-amd", "has:gpu-nvidia", "has:gpu", "arch:x86_64", "arch:x86_64-v2", "arch:x86_64-v3"],
        ),
    ],
)
def test_features_are_what_jobs_may_ask_for(found: dict[str, Any], features: list[str]) -> None:
    assert found_features(found) == features
    offer = {"site_name": "Q", "node": "n", "memory": 1, "disk_space": 1, "remaining_time": 1, "features": features}
    assert m.PilotOffer.model_validate(offer).features == features


def test_a_user_namespace_is_tried_and_not_guessed() -> None:
    assert isinstance(user_namespaces_work(), bool)
