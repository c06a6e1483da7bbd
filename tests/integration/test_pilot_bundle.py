"""The pilot in one file: what the wrapper refuses, and that what it unpacks runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.fake_dispatcher import TOKEN, fake_dispatcher

from airpanda.__main__ import main
from airpanda.pilot.bundle import write_bundle

WRAPPER = Path(__file__).resolve().parents[2] / "include/pilot/wrapper.sh"


def argv(bundle: Path, config: Path, python: str | Path = sys.executable) -> list[str]:
    return ["/bin/sh", str(WRAPPER), "--code", str(bundle), "--python", str(python), str(config)]


def run(
    bundle: Path, config: Path, python: str | Path = sys.executable, path: str = "/usr/bin:/bin"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv(bundle, config, python), env={"PATH": path}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A pilot's directory, with a space in its path."""
    directory = tmp_path / "a pilot"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def config(place: Path) -> Path:
    path = place / "pilot.json"
    path.write_text("{}")
    path.chmod(0o600)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "air panda.pyz").path


def rechecksum(bundle: Path) -> None:
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    bundle.with_name(f"{bundle.name}.sha256").write_text(f"{digest}  {bundle.name}\n")


@pytest.mark.parametrize("how", ["changed", "cut", "empty", "other checksum", "empty checksum"])
def test_a_bundle_that_is_not_what_its_checksum_says_is_not_unpacked(bundle: Path, config: Path, how: str) -> None:
    data = bytearray(bundle.read_bytes())
    checksum = bundle.with_name(f"{bundle.name}.sha256")
    if how == "changed":
        data[len(data) // 2] ^= 1
        bundle.write_bytes(data)
    elif how in ("cut", "empty"):
        bundle.write_bytes(data[: len(data) // 2 if how == "cut" else 0])
    else:
        checksum.write_text("0" * 64 if how == "other checksum" else "")
    done = run(bundle, config)
    assert done.returncode == 73
    assert "is not what its checksum says" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in config.parent.iterdir()] == ["pilot.json"]


def test_a_bundle_without_its_checksum_is_refused(bundle: Path, config: Path) -> None:
    bundle.with_name(f"{bundle.name}.sha256").unlink()
    done = run(bundle, config)
    assert done.returncode == 73
    assert "the site must copy both to the node" in done.stderr


def test_a_file_that_is_no_bundle_is_refused(bundle: Path, config: Path) -> None:
    bundle.write_bytes(b"something else")
    rechecksum(bundle)
    done = run(bundle, config)
    assert done.returncode == 73
    assert "is no archive" in done.stderr
    assert [path.name for path in config.parent.iterdir()] == ["pilot.json"]


def test_something_that_is_no_wheel_of_ours_is_not_taken_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    arguments = ["pilot", "bundle", "--output", str(tmp_path / "b"), "--with-cryptography", str(wheels)]
    assert main(arguments) == 2
    assert "holds no wheels" in capsys.readouterr().err
    (wheels / "evil-1.0-py3-none-any.whl").touch()
    assert main(arguments) == 2
    assert "is no wheel of cryptography" in capsys.readouterr().err
    assert main(["pilot", "bundle", "--output", str(tmp_path / "no" / "b")]) == 2
    assert not (tmp_path / "b").exists()


def test_two_builds_are_the_same_bytes_and_hold_nothing_that_runs_as_root(tmp_path: Path) -> None:
    one, two = write_bundle(tmp_path / "one"), write_bundle(tmp_path / "two")
    assert (one.sha256, one.path.read_bytes()) == (two.sha256, two.path.read_bytes())
    names = zipfile.ZipFile(one.path).namelist()
    assert "airpanda/pilot/__main__.py" in names
    assert not [name for name in names if "launcher/" in name or not name.endswith(".py")]
    said = subprocess.run(["sha256sum", "-c", "one.sha256"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert said.stdout == "one: OK\n"


def test_the_pilot_of_a_bundle_runs_from_its_own_directory(bundle: Path, config: Path) -> None:
    done = run(bundle, config)
    assert done.returncode == 67
    assert "pilot.json: ca_dir is missing" in done.stderr
    (code,) = config.parent.glob("code-*")
    assert code.stat().st_mode & 0o077 == 0
    assert not list(config.parent.glob(".code-*"))


def test_every_module_of_the_bundle_can_be_imported_on_a_node(bundle: Path, tmp_path: Path) -> None:
    """Nothing in it leads to what is not in it."""
    code = tmp_path / "code"
    zipfile.ZipFile(bundle).extractall(code)
    names = [str(p.relative_to(code).with_suffix("")).replace("/", ".") for p in sorted(code.rglob("*.py"))]
    modules = [name.removesuffix(".__init__") for name in names if "__main__" not in name]
    script = f"import sys; sys.path.insert(0, {str(code)!r}); [__import__(name) for name in {modules!r}]"
    subprocess.run([sys.executable, "-I", "-c", script], check=True, timeout=120)


def test_two_pilots_from_one_bundle_in_one_directory(bundle: Path, config: Path) -> None:
    """The first takes the configuration; the other one says that there is none, and neither harms the other."""
    starts = [
        subprocess.Popen(argv(bundle, config), env={"PATH": "/usr/bin:/bin"}, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [start.communicate(timeout=120)[1] for start in starts]
    assert [start.returncode for start in starts] == [67, 67]
    assert sum("ca_dir is missing" in text for text in said) == 1, said
    assert not [text for text in said if "Traceback" in text]
    assert len(list(config.parent.glob("code-*"))) == 1
    assert not list(config.parent.glob(".code-*"))


def test_of_two_pilots_in_one_directory_one_lives_undisturbed(bundle: Path, config: Path, tmp_path: Path) -> None:
    """Started together with the same good configuration: one lives from probe to end, the other has done nothing."""
    (tmp_path / "ca").mkdir()
    slot = {"cores": 1, "memory_mib": 100, "disk_mib": 100, "walltime_s": 3600}
    values = {"pilot_id": 1, "tag": "t", "token": TOKEN, "queue": "TEST", "ca_dir": str(tmp_path / "ca")}
    values |= {"proxy": "/nowhere", "identity_policy": "OPTIONAL", "slot": slot, "idle_limit_s": 1.0, "checks": ""}
    with fake_dispatcher() as fake:
        config.write_text(json.dumps(values | {"dispatcher_url": fake.url}))
        starts = [
            subprocess.Popen(argv(bundle, config), env={"PATH": "/usr/bin:/bin"}, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [start.communicate(timeout=120)[1] for start in starts]
        assert fake.errors == []
        assert [worker.status for worker in fake.workers] == ["started", "finished"]
    assert sorted(start.returncode for start in starts) == [0, 67], said
    assert [path.name for path in config.parent.iterdir() if not path.name.startswith("code-")] == []
    assert not config.parent.with_name(f".{config.parent.name}.wn").exists()


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """A Python without ``cryptography``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True, timeout=120)
    python = tmp_path / "bare/bin/python"
    tried = subprocess.run([python, "-I", "-c", "import cryptography"], capture_output=True, timeout=60, check=False)
    assert tried.returncode != 0
    return python


def make_wheel(directory: Path, name: str) -> None:
    with zipfile.ZipFile(directory / name, "w") as wheel:
        wheel.writestr("cryptography/__init__.py", name)


def test_a_node_without_cryptography_is_told_plainly(bundle: Path, config: Path, bare_python: Path) -> None:
    done = run(bundle, config, bare_python, path=f"{bare_python.parent}:/nowhere")
    assert done.returncode in (73, 76), done.stderr
    assert "install python3-cryptography" in done.stderr


def test_wheels_that_came_along_are_used_where_they_fit(tmp_path: Path, config: Path, bare_python: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    fitting = f"cryptography-43.0-cp39-abi3-manylinux_2_28_{os.uname().machine}.whl"
    old = f"cryptography-99.0-cp38-abi3-manylinux_2_28_{os.uname().machine}.whl"
    for name in (fitting, old, "cryptography-99.0-cp399-abi3-any.whl", "cryptography-98.0-cp39-abi3-linux_vax.whl"):
        make_wheel(wheels, name)
    output = tmp_path / "with"
    assert main(["pilot", "bundle", "--output", str(output), "--with-cryptography", str(wheels)]) == 0
    done = run(output, config, bare_python)
    assert done.returncode == 67, done.stderr  # the pilot has started
    (package,) = config.parent.glob("code-*/packages/cryptography/__init__.py")
    assert package.read_text() == fitting
    assert not list(config.parent.glob("code-*/wheels"))
