"""The shell that every pilot begins with, run by this machine's /bin/sh."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from airpanda.computing.pilot_script import RECORD_EXIT, SIGNALS, TIME_LEFT, pilot_script
from airpanda.pilot import timeleft

WRAPPER = Path(__file__).resolve().parents[2] / "include/pilot/wrapper.sh"
# What a wrapper is called with; at a sweep it only says so.
_SAYS_WHAT = 'printf "[%s]" "$@"; echo; [ "$6" != --sweep ] || exit 9\n'
_WAITS = "echo pilot $$; while :; do sleep 0.05; done\n"
Script = Callable[..., str]


@pytest.fixture(params=[True, False], ids=["signals are passed", "everybody is signalled"])
def script(request: pytest.FixtureRequest) -> Script:
    def make(**options: object) -> str:
        return pilot_script("/code it's", "/py", passes_signals=request.param, **options)  # type: ignore[arg-type]

    return make


START = ("/usr/bin/env", "--default-signal", "/bin/sh", "start.sh")
"""Tests in the background ignore some signals, and a shell cannot trap what it was born to ignore."""


@contextmanager
def started(
    place: Path, script: str, wrapper: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The script in its directory, with everything it prints in ``out``."""
    place.joinpath("tmp").mkdir()
    place.joinpath("wrapper.sh").write_text(wrapper)
    place.joinpath("start.sh").write_text(script)
    place.joinpath("pilot.json").write_text("the token")
    environment = {"PATH": "/usr/bin:/bin", "SECRET_OF_SITE": "x", **(environment or {})}
    with place.joinpath("out").open("wb") as out:
        process = subprocess.Popen(START, cwd=place, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ends(place: Path, script: str, wrapper: str) -> int:
    with started(place, script, wrapper) as process:
        return process.wait(60)


def said(place: Path) -> str:
    return place.joinpath("out").read_text()


def until(look: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not look():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.02)


def catches(process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """The pilot is on its way some moments before the shell listens."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << number - 1)


def in_session(session: int) -> list[str]:
    """What lives in a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, _, its = path.read_text().rpartition(")")[2].split()[:4]
            found += [path.parent.name] if int(its) == session and state != "Z" else []
    return found


def test_the_pilot_is_called_in_a_clean_environment_and_its_code_is_the_scripts(tmp_path: Path, script: Script) -> None:
    assert ends(tmp_path, script(), _SAYS_WHAT + "cat pilot.json; env; exit 5\n") == 5
    call, _, environment = said(tmp_path).partition("\n")
    assert call == "[--code][/code it's][--python][/py][pilot.json]"
    assert environment.startswith("the token")
    assert f"\nTMPDIR={tmp_path}/tmp\n" in environment
    assert "SECRET_OF_SITE" not in environment
    assert not tmp_path.joinpath("pilot.json").exists()


TELLS = {name: f"{name} of site" for name in TIME_LEFT}


def test_what_batch_systems_say_of_the_time_left_reaches_the_pilot(tmp_path: Path, script: Script) -> None:
    with started(tmp_path, script(), "env\n", TELLS) as process:
        assert process.wait(60) == 0
    assert TELLS.items() <= dict(line.split("=", 1) for line in said(tmp_path).splitlines()).items()


def test_script_wrapper_and_pilot_look_at_the_same_variables() -> None:
    handed_on = re.findall(r'"(\w+)=\$\1"', WRAPPER.read_text())
    assert sorted({*handed_on} - {"PATH"}) == sorted(TIME_LEFT)
    asks = Path(timeleft.__file__).read_text()
    assert [name for name in TIME_LEFT if name not in asks] == ["SGE_CELL"], "which qstat itself looks at"


def test_the_real_wrapper_and_a_pilot_see_the_end_of_a_slurm_job(tmp_path: Path) -> None:
    """Both halves together; what stands for the pilot only says what it sees."""
    code = tmp_path / "code"
    (code / "airpanda" / "pilot").mkdir(parents=True)
    for package in (code / "airpanda", code / "airpanda" / "pilot"):
        package.joinpath("__init__.py").touch()
    code.joinpath("airpanda", "pilot", "__main__.py").write_text(
        "import os\ndef main(argv):\n    print('end', os.environ.get('SLURM_JOB_END_TIME'))\n    return 0\n"
    )
    place = tmp_path / "place"
    place.mkdir()
    script = pilot_script(str(code), sys.executable)
    with started(place, script, WRAPPER.read_text(), {"SLURM_JOB_END_TIME": "1900000000"}) as process:
        assert process.wait(60) == 0, said(place)
    assert "end 1900000000" in said(place)


def test_words_of_the_queue_file_are_words_and_no_shell(tmp_path: Path) -> None:
    assert ends(tmp_path, pilot_script("$(touch x)", "`touch x`;touch x #"), _SAYS_WHAT) == 0
    assert said(tmp_path) == "[--code][$(touch x)][--python][`touch x`;touch x #][pilot.json]\n"
    assert not tmp_path.joinpath("x").exists()


def test_a_killed_pilot_is_cleaned_up_after_by_its_own_notes(tmp_path: Path, script: Script) -> None:
    killed = '[ "$6" = --sweep ] || kill -9 $$\n' + _SAYS_WHAT
    tmp_path.joinpath("sweep.json").touch()
    assert ends(tmp_path, script(last=RECORD_EXIT), killed) == 128 + 9
    assert said(tmp_path).endswith("[--code][/code it's][--python][/py][sweep.json][--sweep]\n")
    assert not tmp_path.joinpath("pilot.json").exists()
    assert tmp_path.joinpath("exit").read_text() == "137\n"


def test_without_notes_there_is_nothing_to_sweep(tmp_path: Path, script: Script) -> None:
    assert ends(tmp_path, script(), _SAYS_WHAT) == 0
    assert "sweep" not in said(tmp_path)


def test_without_a_token_file_no_pilot_begins(tmp_path: Path, script: Script) -> None:
    """The wrapper itself is the real one."""
    assert ends(tmp_path, f"rm pilot.json\n{script()}", WRAPPER.read_text()) == 67
    assert "configuration 'pilot.json' is no readable file" in said(tmp_path)


@pytest.mark.parametrize("name", SIGNALS.split())
def test_a_signal_to_the_shell_alone_reaches_the_pilot_and_the_shell_outlives_it(tmp_path: Path, name: str) -> None:
    slow = "trap 'sleep 0.3; exit 6' TERM; touch ready\n" + _WAITS
    with started(tmp_path, pilot_script("/c", "/p"), slow) as process:
        number = signal.Signals[f"SIG{name}"]
        until(lambda: tmp_path.joinpath("ready").exists() and catches(process, number))
        process.send_signal(number)
        assert process.wait(60) == 6
    assert not tmp_path.joinpath("pilot.json").exists()


def test_a_pilot_may_need_more_than_one_signal(tmp_path: Path) -> None:
    twice = "trap 'trap \"exit 6\" TERM; touch once' TERM; touch ready\n" + _WAITS
    with started(tmp_path, pilot_script("/c", "/p"), twice) as process:
        for mark in ("ready", "once"):
            until(lambda file=tmp_path / mark: file.exists() and catches(process, signal.SIGTERM))  # type: ignore[misc]
            assert tmp_path.joinpath("pilot.json").exists()
            process.terminate()
        assert process.wait(60) == 6


@pytest.mark.parametrize("name", SIGNALS.split())
def test_where_everybody_is_signalled_the_shell_outlives_it_and_passes_nothing_on(tmp_path: Path, name: str) -> None:
    waits = "trap 'exit 6' TERM; touch ready; until [ -e go ]; do sleep 0.05; done; exit 7\n"
    with started(tmp_path, pilot_script("/c", "/p", passes_signals=False), waits) as process:
        until(tmp_path.joinpath("ready").exists)
        process.send_signal(signal.Signals[f"SIG{name}"])
        tmp_path.joinpath("go").touch()
        assert process.wait(60) == 7
    assert not tmp_path.joinpath("pilot.json").exists()


def test_what_is_watched_for_ends_the_pilot(tmp_path: Path) -> None:
    watched = pilot_script("/c", "/p", watch="until [ -e over ]; do sleep 0.05; done")
    with started(tmp_path, watched, "trap 'exit 6' TERM; touch ready\n" + _WAITS) as process:
        until(tmp_path.joinpath("ready").exists)
        assert process.poll() is None
        tmp_path.joinpath("over").touch()
        assert process.wait(60) == 6


def test_a_pilot_that_ends_is_watched_no_longer(tmp_path: Path) -> None:
    """It may end before its watcher has begun."""
    watch = "while :; do sleep 0.2; done"
    for number in range(20):
        place = tmp_path / str(number)
        place.mkdir()
        with started(place, pilot_script("/c", "/p", watch=watch), "exit 0\n") as process:
            assert process.wait(60) == 0
            until(lambda process=process: not in_session(process.pid))  # type: ignore[misc]


def test_the_pilot_itself_ignores_no_signal_that_the_shell_catches(tmp_path: Path, script: Script) -> None:
    ends(tmp_path, script(), "grep SigIgn /proc/self/status\n")
    ignored = int(said(tmp_path).split()[1], 16)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGXCPU):
        assert not ignored & 1 << number - 1, number
