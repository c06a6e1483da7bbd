"""The wrapper on bad nodes: it says plainly what is missing, and what reaches the pilot is clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import airpanda

WRAPPER = Path(__file__).resolve().parents[2] / "include/pilot/wrapper.sh"
CODE = Path(airpanda.__file__).parent.parent


def run(*arguments: str | Path, path: str = "/usr/bin:/bin", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", WRAPPER, *arguments],
        env={"PATH": path, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pilot file.json"
    path.write_text("{}")
    path.chmod(0o600)
    return path


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Something that looks like our package and shows how it was started."""
    package = tmp_path / "code dir" / "airpanda" / "pilot"
    package.mkdir(parents=True)
    for directory in (package, package.parent):
        (directory / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os, sys\n"
        "def main(arguments):\n"
        "    print(arguments, sorted(os.environ), sys.flags.isolated, sys.version_info >= (3, 9))\n"
        "    return 42\n"
    )
    return package.parent.parent


@pytest.mark.parametrize("arguments", [[], ["--code", CODE], ["--code", CODE, "/nonexistent"], ["--code", CODE, "/"]])
def test_without_a_configuration(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 67
    assert "no readable file" in done.stderr


@pytest.mark.parametrize("code", ["/nonexistent", "", "/usr"])
def test_without_the_code(config: Path, code: str) -> None:
    done = run("--code", code, config)
    assert done.returncode == 73
    assert "the site must correct [pilot] code" in done.stderr


def test_without_any_python(config: Path, tmp_path: Path) -> None:
    done = run("--code", CODE, config, path=str(tmp_path))
    assert done.returncode == 76
    assert "none found" in done.stderr


def fake_python(directory: Path, name: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    return path


def test_with_unusable_pythons_only(config: Path, tmp_path: Path) -> None:
    old = fake_python(tmp_path / "bin", "python3")
    done = run("--code", CODE, config, path=str(old.parent))
    assert done.returncode == 76
    assert str(old) in done.stderr


def test_the_configured_python_comes_first_and_a_replacement_is_told(config: Path, code: Path, tmp_path: Path) -> None:
    broken = fake_python(tmp_path / "my bin", "python")
    real = Path(sys.executable)
    good = tmp_path / "other bin"
    good.mkdir()
    (good / "python3").symlink_to(real)
    done = run("--code", code, "--python", real, config)
    assert (done.returncode, done.stderr) == (42, "")
    done = run("--code", code, "--python", broken, config, path=f"{good}:/usr/bin:/bin")
    assert done.returncode == 42
    assert f"the configured {broken} cannot be used" in done.stderr


def test_the_pilot_gets_a_clean_environment_and_its_file(config: Path, code: Path) -> None:
    dirty = {"PYTHONPATH": "/evil", "LD_PRELOAD": "", "X509_USER_PROXY": "/p", "HOME": "/h", "BEARER_TOKEN": "t"}
    done = run("--code", code, "--python", sys.executable, config, **dirty)
    assert done.stdout == f"{[str(config)]} ['HOME', 'LANG', 'PATH', 'TMPDIR'] 1 True\n"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"SLURM_JOB_END_TIME": "1", "SLURM_JWT": "secret"}, ["SLURM_JOB_END_TIME"]),
        ({"PBS_WALLTIME": "1", "PBS_O_PATH": "/x"}, ["PBS_WALLTIME"]),
        (
            {"SGE_ROOT": "/s p", "SGE_CELL": "c", "JOB_ID": "1", "QUEUE": "q", "SGE_O_PATH": "/x"},
            ["SGE_ROOT", "SGE_CELL", "JOB_ID", "QUEUE"],
        ),
        ({"JOB_ID": "1", "QUEUE": "q"}, []),
        (
            {"_CONDOR_JOB_AD": "/a b", "_CONDOR_MACHINE_AD": "/m", "_CONDOR_CREDS": "/c"},
            ["_CONDOR_JOB_AD", "_CONDOR_MACHINE_AD"],
        ),
    ],
    ids=["slurm", "pbs", "gridengine", "somebody's job number", "condor"],
)
def test_what_batch_systems_say_of_the_time_goes_along_and_nothing_else(
    config: Path, code: Path, given: dict[str, str], kept: list[str]
) -> None:
    done = run("--code", code, "--python", sys.executable, config, **given)
    assert done.stdout == f"{[str(config)]} {sorted(['HOME', 'LANG', 'PATH', 'TMPDIR', *kept])} 1 True\n"


def test_the_real_pilot_refuses_a_wrong_configuration_in_one_sentence(config: Path) -> None:
    done = run("--code", CODE, "--python", sys.executable, config)
    assert done.returncode == 67
    assert "pilot.json: ca_dir is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not config.exists() or os.stat(config)
