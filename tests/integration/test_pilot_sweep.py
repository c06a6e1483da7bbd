"""What a killed pilot, or a failing launcher, must not leave on a node."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_dispatcher import fake_dispatcher, make_job
from support.fake_switch import FakeSwitcher
from support.pilot_rig import Rig

from airpanda.core.errors import IdentitySwitchError
from airpanda.pilot import sweep
from airpanda.pilot.config import PilotConfig


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(sweep, "_PAUSE_S", 0.01)
    with fake_dispatcher() as fake:
        yield Rig(fake, tmp_path)


class Failing(FakeSwitcher):
    """Its first removals fail, as when the launcher is killed."""

    failures = 0

    def remove(self, sandbox: Path, proxy: Path) -> None:
        assert proxy.exists()
        if self.failures:
            self.failures -= 1
            raise IdentitySwitchError("the launcher was killed")
        super().remove(sandbox, proxy)


def killed_in_a_job(config: PilotConfig) -> Path:
    """A pilot's directories as SIGKILL leaves them; the sandbox."""
    sweep.begin(config)
    place = config.workdir / "job-7-abc"
    place.mkdir(mode=0o700)
    (place / sweep.PROXY).write_text("proxy")
    sandbox = config.scratch / "payload-xyz" / "0123456789abcdef"
    sandbox.mkdir(parents=True)
    (sandbox / "data").write_text("x")
    (sandbox.parent / "record-1").touch()
    return sandbox


def test_what_nobody_noted_is_found_and_removed(rig: Rig) -> None:
    config = rig.config()
    killed_in_a_job(config)
    sweep.sweep(config, FakeSwitcher)
    assert not config.scratch.exists()
    assert list(config.workdir.iterdir()) == []


def test_a_launcher_that_fails_for_a_moment_leaves_nothing(rig: Rig) -> None:
    config = rig.config()
    killed_in_a_job(config)
    switcher = Failing()
    switcher.failures = 2
    sweep.sweep(config, lambda: switcher)
    assert not config.scratch.exists()
    assert list(config.workdir.iterdir()) == []


def test_what_cannot_be_removed_stays_with_its_proxy_and_notes_for_another_sweep(rig: Rig) -> None:
    config = rig.config()
    sandbox = killed_in_a_job(config)
    switcher = Failing()
    switcher.failures = 1000
    sweep.sweep(config, lambda: switcher)
    assert (sandbox / "data").exists()
    assert (config.workdir / sweep.NOTES).exists()
    switcher.failures = 0
    sweep.sweep(config, lambda: switcher)
    assert not config.scratch.exists()
    assert list(config.workdir.iterdir()) == []


def test_a_sweep_of_nothing_is_no_error(rig: Rig) -> None:
    config = rig.config()
    sweep.begin(config)
    sweep.end(config)
    sweep.sweep(config, FakeSwitcher)
    assert list(config.workdir.iterdir()) == []


def test_processes_below_the_scratch_directory_end(rig: Rig) -> None:
    config = rig.config()
    sandbox = killed_in_a_job(config)
    process = subprocess.Popen(["sh", "-c", "sleep 1000; :"], cwd=sandbox)
    try:
        sweep.sweep(config, FakeSwitcher)
        process.wait(10)
    finally:
        process.kill()
    assert not config.scratch.exists()


def test_a_pilot_whose_launcher_fails_while_cleaning_tries_again(rig: Rig) -> None:
    rig.switcher = Failing()
    rig.switcher.failures = 2
    rig.fake.jobs = [make_job()]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "finished"]
    assert rig.leftovers() == []


def test_a_pilot_that_cannot_clean_keeps_what_the_sweep_needs(rig: Rig) -> None:
    rig.switcher = Failing()
    rig.switcher.failures = 3
    rig.fake.jobs = [make_job()]
    config = rig.config()
    sweep.begin(config)
    rig.run()
    sweep.end(config)
    assert rig.leftovers() != []
    sweep.sweep(config, lambda: rig.switcher)
    assert not config.scratch.exists()
    assert os.listdir(config.workdir) == []
