"""What a pilot finds out about its node, and a site's own checks of it."""

from __future__ import annotations

import email.utils
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_dispatcher import _Handler, fake_dispatcher, make_job
from support.need import need_root
from support.pilot_rig import Rig

import airpanda
from airpanda.core.errors import ConfigurationError
from airpanda.pilot import errors, hardware, loop, sitechecks
from airpanda.pilot.sitechecks import run_checks


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with fake_dispatcher() as fake:
        yield Rig(fake, tmp_path)
        assert fake.errors == [], "the pilot sent what the dispatcher does not accept"


@pytest.fixture
def checks(tmp_path: Path) -> Path:
    directory = tmp_path / "node checks"
    directory.mkdir(mode=0o755)
    return directory


def put(directory: Path, name: str, text: str, mode: int = 0o755) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def test_a_check_that_fails_benches_the_node_and_tells_why(rig: Rig, checks: Path) -> None:
    put(checks, "10-good", "echo fine")
    put(checks, "20-cvmfs", "echo the software is not mounted >&2; exit 3")
    rig.options["checks"] = str(checks)
    rig.fake.jobs = [make_job()]
    assert rig.run() == errors.EXIT_BENCHED
    assert rig.fake.offers == []
    (worker,) = rig.fake.workers
    assert (worker.status, "the software is not mounted" in worker.reason) == ("benched", True)
    assert [(check["name"], check["passed"]) for check in worker.probe["checks"]] == [
        ("10-good", True),
        ("20-cvmfs", False),
    ]


@pytest.mark.parametrize("what", ["directory", "file"])
def test_checks_that_others_may_change_are_not_run(rig: Rig, checks: Path, tmp_path: Path, what: str) -> None:
    path = put(checks, "evil", f"touch '{tmp_path}/ran'")
    (checks if what == "directory" else path).chmod(0o777)
    rig.options["checks"] = str(checks)
    assert rig.run() == errors.EXIT_BENCHED
    assert "may be changed by others" in rig.fake.workers[-1].reason
    assert not (tmp_path / "ran").exists()


def test_a_check_without_end_is_ended_with_all_it_started(checks: Path, tmp_path: Path) -> None:
    put(checks, "slow", f"sleep 1000 & echo $! > '{tmp_path}/pid'; wait")
    (answer,) = run_checks(checks, limit_s=3.0)
    assert (answer["passed"], answer["reason"]) == (False, "it took over 3 s")
    pid = (tmp_path / "pid").read_text().strip()
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_output_is_cut_and_storable(checks: Path) -> None:
    put(checks, "loud", "head -c 100000 /dev/zero")
    put(checks, "plain", "exit 0", mode=0o644)
    put(checks, ".hidden", "exit 1")
    (answer,) = run_checks(checks)
    assert answer["passed"] is True
    assert len(answer["output"]) == sitechecks.MAX_OUTPUT
    assert "\0" not in answer["output"]


def test_something_that_cannot_be_started_has_not_passed(checks: Path) -> None:
    path = checks / "broken"
    path.write_text("#!/nonexistent/interpreter\n")
    path.chmod(0o755)
    (answer,) = run_checks(checks)
    assert (answer["passed"], "cannot be started" in answer["reason"]) == (False, True)


def test_too_many_checks_and_none(checks: Path, tmp_path: Path) -> None:
    assert run_checks(tmp_path / "nowhere") == []
    assert run_checks(checks) == []
    for number in range(sitechecks.MAX_CHECKS + 1):
        put(checks, f"c{number}", "exit 0")
    with pytest.raises(ConfigurationError, match="keep it to 32"):
        run_checks(checks)


def test_a_pilot_offers_no_more_time_than_the_batch_system_leaves(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 900))
    rig.run()
    assert 0 < rig.fake.offers[0].remaining_time <= 900
    assert rig.fake.workers[0].probe["batch_time_left_s"] <= 900


def test_nvidia_gpus_as_their_program_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.nvidia_gpus() == []
    text = "echo 'GPU 0: NVIDIA A100 (UUID: GPU-1234)'; echo 'GPU 1: NVIDIA A100 (UUID: GPU-5)'; echo other"
    put(tmp_path, "nvidia-smi", text)
    assert hardware.nvidia_gpus() == ["GPU 0: NVIDIA A100", "GPU 1: NVIDIA A100"]
    put(tmp_path, "nvidia-smi", "echo 'GPU 0: no driver'; exit 9")
    assert hardware.nvidia_gpus() == []


def test_versions_are_bounded_and_a_program_that_hangs_is_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(hardware, "_VERSION_S", 3.0)
    put(tmp_path, "good", "[ $1 = --version ] && printf '\\n  good 1.2\\0\\nmore'")
    put(tmp_path, "hangs", "exec sleep 60")
    put(tmp_path, "fails", "echo broken; exit 1")
    put(tmp_path, "loud", "head -c 100000 /dev/zero | tr '\\0' x")
    begin = time.monotonic()
    found = hardware.versions(("good", "hangs", "fails", "loud", "absent"))
    assert time.monotonic() - begin < 40, "of the sixty that it would have slept"
    assert found == {"good": "good 1.2\ufffd", "hangs": "", "fails": "", "loud": "x" * 200}


def test_what_the_probe_finds_is_offered(rig: Rig) -> None:
    rig.options["features"] = ("site-word", "has:user-namespaces")
    rig.run()
    (worker, *_), offer = rig.fake.workers, rig.fake.offers[0]
    assert worker.probe["interpreters"]["python3"].startswith("Python 3")
    assert "libc" in worker.probe
    assert offer.features[:2] == ["site-word", "has:user-namespaces"]
    assert len(offer.features) == len(set(offer.features))
    assert any(feature.startswith("arch:") for feature in offer.features)


def test_the_benchmark_is_off_unless_asked_for(rig: Rig) -> None:
    rig.run()
    assert "benchmark" not in rig.fake.workers[0].probe
    rig.options["benchmark_s"] = 0.05
    rig.run()
    assert rig.fake.workers[-1].probe["benchmark"]["sha256_mib_per_s"] > 0


def test_a_bad_node_holds_its_slot_as_long_as_told(rig: Rig, checks: Path) -> None:
    put(checks, "no", "exit 1")
    rig.options.update(checks=str(checks), bench_sleep_s=1.5)
    begin = time.monotonic()
    rig.run()
    assert time.monotonic() - begin >= 1.5


def test_the_transcript_says_what_whoever_looks_for_a_bad_node_asks_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is 500 s behind the dispatcher's and a MyProxy that nobody reaches included."""
    ahead = email.utils.formatdate(time.time() + 500, usegmt=True)
    monkeypatch.setattr(_Handler, "date_time_string", lambda *_: ahead)
    rig.options.update(myproxy="127.0.0.1:1", benchmark_s=0.05)
    rig.run()
    told = rig.fake.workers[0].probe
    assert abs(told["dispatcher"]["clock_skew_s"] - 500) < 60
    assert told["dispatcher"]["seconds"] >= 0
    assert told["myproxy"]["reached"] is False
    assert "refused" in told["myproxy"]["reason"]
    assert told["benchmark"]["sha256_mib_per_s"] > 0
    assert told["kernel"] == os.uname().release
    assert told["libc"].split()[0] in ("glibc", "musl")
    assert "cpu" in told
    for name in ("os", "machine", "architecture", "interpreters", "soft_limits"):
        assert told[name], name
    for name in ("cores", "memory_mib", "disk_mib"):
        assert told[name] > 0, name
    assert isinstance(told["user_namespaces"], bool)
    assert isinstance(told["runtimes"], dict)
    assert told["switch"]["works"] is True


LEFT = "import sys; sys.path.insert(0, sys.argv[1]); from airpanda.pilot import probe; "
LEFT += "print(probe.usable_memory_mib(), probe.usable_cores())"


@pytest.mark.root
def test_what_a_batch_systems_cgroup_leaves_is_all_that_there_is() -> None:
    """A real one of version 1, as this kernel has it, on a group above the pilot's own."""
    need_root()
    groups = []
    try:
        for controller, file, text in (("memory", "limit_in_bytes", str(300 << 20)), ("cpu", "cfs_quota_us", "100000")):
            job = Path("/sys/fs/cgroup", controller, f"airpanda-job-{secrets.token_hex(6)}")
            if not (job.parent / "cgroup.procs").exists():
                pytest.skip(f"NOT TESTED: this machine has no cgroup v1 of its own for {controller}")
            (job / "step").mkdir(parents=True)
            groups += [job / "step", job]
            (job / f"{controller}.{file}").write_text(text)
        enter = "".join(f"echo 0 > {group}/cgroup.procs; " for group in groups[::2])
        argv = ["sh", "-ec", f'{enter}exec "$@"', "sh", sys.executable, "-IS", "-c", LEFT]
        plugins = str(Path(airpanda.__file__).parent.parent)
        done = subprocess.run([*argv, plugins], capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == ["300", "1"], done
    finally:
        for group in groups:
            group.rmdir()


def test_pilots_that_were_sent_together_do_not_end_together(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = []
    for end in (min, max):
        monkeypatch.setattr(loop.random, "uniform", lambda *ends, end=end: end(ends))
        rig.run()
        offered.append(rig.fake.offers[-1].remaining_time)
    assert 3600 * 0.94 < offered[0] <= 3600 * 0.95 < 3590 < offered[1] <= 3600
