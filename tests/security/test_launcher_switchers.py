"""The pilot's side: the ladder never goes down after a refusal, and containment never says that it is a switch."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.launcher import wait_for
from support.need import need_program

from airpanda.core.errors import IdentitySwitchError, RequestError
from airpanda.core.identity import IdentityPolicy
from airpanda.glexec import contained, marks, sandboxes
from airpanda.glexec.gate import exports
from airpanda.glexec.proctree import tree
from airpanda.glexec.switchers import ContainedSwitcher, GlexecSwitcher, PayloadOutcome, SwitchLadder

# --- the ladder -----------------------------------------------------------------------------------------------------


def test_required_without_a_launcher_is_no_payload() -> None:
    with pytest.raises(IdentitySwitchError, match="demands an identity switch"):
        SwitchLadder.choose(IdentityPolicy.REQUIRED, glexec=None, bwrap=Path("/usr/bin/bwrap"))


@pytest.mark.parametrize(("policy", "switches"), [("REQUIRED", True), ("OPTIONAL", True), ("NEVER", False)])
def test_an_installed_launcher_is_used_where_a_switch_is_wanted(policy: str, switches: bool) -> None:
    switcher = SwitchLadder.choose(IdentityPolicy(policy), glexec=Path("/x/glexec"), bwrap=None)
    assert switcher.switches is switches


@pytest.mark.parametrize("policy", ["OPTIONAL", "NEVER"])
def test_without_bubblewrap_nothing_is_called_contained(policy: str, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    for bwrap in (None, broken, tmp_path / "missing"):
        made = SwitchLadder.choose(IdentityPolicy(policy), glexec=None, bwrap=bwrap)
        assert (made.kind, made.contains, made.switches) == ("uncontained", False, False)


def test_with_bubblewrap_a_payload_is_contained() -> None:
    made = SwitchLadder.choose(IdentityPolicy.OPTIONAL, glexec=None, bwrap=Path(need_program("bwrap", "bubblewrap")))
    if not made.contains:
        pytest.skip("NOT TESTED: bubblewrap does not work on this machine (user namespaces are off)")
    assert (made.kind, made.switches) == ("contained", False)


def stand_in(tmp_path: Path, script: str) -> GlexecSwitcher:
    path = tmp_path / "glexec"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return GlexecSwitcher(path, retry_s=0.0)


@pytest.fixture
def proxy(tmp_path: Path) -> Path:
    path = tmp_path / "proxy"
    path.write_text("stand-in")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("code", [201, 202, 203, 126])
def test_a_refusal_is_an_error_in_every_method(tmp_path: Path, proxy: Path, code: int) -> None:
    switcher = stand_in(tmp_path, f"echo because >&2; exit {code}")
    for act in (
        lambda: switcher.preflight(proxy),
        lambda: switcher.make_sandbox(tmp_path, proxy),
        lambda: switcher.put(tmp_path, proxy, {}),
        lambda: switcher.get(tmp_path, proxy, ["x"], tmp_path, max_bytes=1),
    ):
        with pytest.raises(IdentitySwitchError, match="because") as caught:
            act()
        assert caught.value.exit_code == code
    assert {path.name for path in tmp_path.iterdir()} == {"glexec", "proxy"}


def test_202_is_tried_again_and_203_is_not(tmp_path: Path, proxy: Path) -> None:
    for code, tries in ((202, 3), (203, 1)):
        switcher = stand_in(tmp_path, f'echo x >> "{tmp_path}/tries-{code}"; exit {code}')
        with pytest.raises(IdentitySwitchError):
            switcher.preflight(proxy)
        assert len((tmp_path / f"tries-{code}").read_text().split()) == tries


def test_a_launcher_that_does_not_switch_is_no_switch(tmp_path: Path, proxy: Path) -> None:
    """As real gLExec without its setuid bit: it runs everything, as the pilot."""
    switcher = stand_in(tmp_path, 'exec "$@"')
    with pytest.raises(IdentitySwitchError, match="did not switch"):
        switcher.preflight(proxy)
    with pytest.raises(IdentitySwitchError, match="did not switch"):
        switcher.make_sandbox(tmp_path, proxy)
    assert {path.name for path in tmp_path.iterdir()} == {"glexec", "proxy"}


def test_an_answer_that_only_looks_switched_is_found_out(tmp_path: Path, proxy: Path) -> None:
    """Inside says another uid (as ``bwrap --uid`` does); the sandbox's owner, seen from outside, does not."""
    switcher = stand_in(tmp_path, 'case "$*" in *"id -u"*) echo 61012; echo alice; echo 61012;; *) exec "$@";; esac')
    assert switcher.preflight(proxy).uid == 61012
    with pytest.raises(IdentitySwitchError, match="did not switch"):
        switcher.make_sandbox(tmp_path, proxy)


def test_a_missing_launcher_is_an_error(tmp_path: Path, proxy: Path) -> None:
    with pytest.raises(IdentitySwitchError, match="cannot be started"):
        GlexecSwitcher(tmp_path / "missing").preflight(proxy)


# --- containment ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "bwrap"])
def switcher(request: pytest.FixtureRequest, tmp_path: Path) -> ContainedSwitcher:
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret").write_text("secret")
    bwrap = Path(need_program("bwrap", "bubblewrap")) if request.param == "bwrap" else None
    made = ContainedSwitcher(bwrap, hide=[private])
    if request.param == "bwrap" and not made.contains:
        pytest.skip("NOT TESTED: bubblewrap does not work on this machine (user namespaces are off)")
    return made


@pytest.fixture
def sandbox(switcher: ContainedSwitcher, tmp_path: Path, proxy: Path) -> Iterator[Path]:
    made = switcher.make_sandbox(tmp_path, proxy)
    yield made
    switcher.remove(made, proxy)
    assert not made.parent.exists()


def run(switcher: ContainedSwitcher, sandbox: Path, proxy: Path, script: str, **env: str) -> tuple[PayloadOutcome, str]:
    log = sandbox.parent.parent / "log"
    payload = switcher.launch(
        ["/bin/sh", "-c", script], env=env, sandbox=sandbox, proxy=proxy, stdout=log, stderr=log, label=""
    )
    outcome = payload.wait(60)
    assert outcome is not None
    assert payload.wait(0) == outcome
    assert payload.identity_proven is False
    return outcome, log.read_text()


def test_contained_is_never_called_switched(switcher: ContainedSwitcher, sandbox: Path, proxy: Path) -> None:
    outcome, text = run(
        switcher, sandbox, proxy, 'echo "$A|$HOME"; pwd; stat -c %a "$X509_USER_PROXY"; exit 7', A="a b'c"
    )
    assert text == f"a b'c|{sandbox}\n{sandbox}\n600\n"
    assert (outcome.exit_code, outcome.identity_switched) == (7, False)
    assert outcome.account.uid == os.geteuid()
    assert [path.name for path in sandbox.iterdir()] == []


def test_bubblewrap_hides_and_protects(switcher: ContainedSwitcher, sandbox: Path, proxy: Path, tmp_path: Path) -> None:
    if not switcher.contains:
        pytest.skip("without bubblewrap nothing is hidden, and the switcher says so")
    _, text = run(
        switcher, sandbox, proxy, f"cat '{tmp_path}/private/secret'; touch '{tmp_path}/x'; ls /proc | grep -c '^[0-9]'"
    )
    assert "secret\n" not in text.replace("private/secret", "")
    assert not (tmp_path / "x").exists()


@pytest.fixture(name="walled")
def _walled() -> Callable[..., ContainedSwitcher]:
    def make(*hide: Path) -> ContainedSwitcher:
        made = ContainedSwitcher(Path(need_program("bwrap", "bubblewrap")), hide=hide)
        if not made.contains:
            pytest.skip("NOT TESTED: bubblewrap does not work on this machine (user namespaces are off)")
        return made

    return make


def test_single_files_are_hidden_wherever_they_are(
    walled: Callable[..., ContainedSwitcher], proxy: Path, request: pytest.FixtureRequest
) -> None:
    """Not in a temporary directory, which is hidden anyway, and beside what the payload needs."""
    place = Path(tempfile.mkdtemp(dir=Path(__file__).parent))
    request.addfinalizer(lambda: shutil.rmtree(place))
    (place / "pilot.proxy").write_text("key of the pilot")
    (place / "link").symlink_to(place / "pilot.proxy")
    switcher = walled(place / "link", place / "missing")
    sandbox = switcher.make_sandbox(place, proxy)
    _, text = run(switcher, sandbox, proxy, f"cat '{place}/pilot.proxy' '{place}/link'; echo end")
    assert "key of the pilot" not in text
    assert text.endswith("end\n")


def test_sockets_of_services_are_hidden_and_names_resolve(
    walled: Callable[..., ContainedSwitcher], tmp_path: Path, proxy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_directory, resolver = tmp_path / "run", tmp_path / "run" / "resolver" / "conf"
    resolver.parent.mkdir(parents=True)
    resolver.write_text("nameserver 192.0.2.1")
    (run_directory / "bus").touch()
    monkeypatch.setattr(contained, "_RESOLVER", str(resolver))
    switcher = walled()
    assert Path("/run") in switcher._hide
    sandbox = switcher.make_sandbox(tmp_path, proxy)
    script = f"ls -A /run; cat '{resolver}'; echo; ls '{run_directory}'"
    assert run(switcher, sandbox, proxy, script)[1] == "nameserver 192.0.2.1\nresolver\n"


def test_the_accounts_home_is_hidden(walled: Callable[..., ContainedSwitcher], tmp_path: Path, proxy: Path) -> None:
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    if not home.is_dir() or home.stat().st_uid != os.geteuid() or not os.listdir(home):
        pytest.skip("NOT TESTED: this account has no home of its own with anything in it")
    switcher = walled()
    sandbox = switcher.make_sandbox(tmp_path, proxy)
    assert run(switcher, sandbox, proxy, f"ls -A '{home}' 2>/dev/null")[1] == ""


LEAVING = "kill -9 $PPID; cd /; (setsid env -i /bin/sleep {n} &); exec env -i /bin/sleep {n}"


@pytest.mark.parametrize("how", ["waited for", "killed", "removed by somebody else"])
def test_a_payload_that_kills_its_supervisor_is_ended(tmp_path: Path, proxy: Path, how: str) -> None:
    """Also by a sweep, after the pilot's own death."""
    number, log = f"9{os.getpid()}.{len(how)}", tmp_path / "log"
    switcher = ContainedSwitcher(None)
    sandbox = switcher.make_sandbox(tmp_path, proxy)
    payload = switcher.launch(
        ["/bin/sh", "-c", LEAVING.format(n=number)],
        env={},
        sandbox=sandbox,
        proxy=proxy,
        stdout=log,
        stderr=log,
        label="",
    )
    wait_for(lambda: [line.split(b"\0")[0] for line in sleeping(number)] == [b"/bin/sleep"] * 2)
    if how == "waited for":
        outcome = payload.wait(60)
        assert outcome is not None
        assert outcome.exit_code == 137
    elif how == "killed":
        payload.kill(0)
    else:
        ContainedSwitcher(None).remove(sandbox, proxy)
        assert not sandbox.exists()
    assert not sleeping(number)
    payload.wait(60)


def test_a_look_into_the_sandbox_does_not_end_its_payload(
    switcher: ContainedSwitcher, sandbox: Path, proxy: Path, tmp_path: Path
) -> None:
    """Nor does one that must be killed. What a payload leaves to be found ends with its own launch."""
    log = tmp_path / "payload"
    payload = switcher.launch(
        ["/bin/sh", "-c", "echo begun; until [ -e end ]; do sleep 0.05; done; exit 3"],
        env={},
        sandbox=sandbox,
        proxy=proxy,
        stdout=log,
        stderr=log,
        label="",
    )
    wait_for(lambda: log.exists() and log.read_text() == "begun\n")
    outcome, _ = run(switcher, sandbox, proxy, "ls -A")
    assert outcome.exit_code == 0
    stuck = switcher.launch(
        ["/bin/sleep", "600"], env={}, sandbox=sandbox, proxy=proxy, stdout=log, stderr=log, label=""
    )
    stuck.kill(0)
    assert payload.wait(0.5) is None
    (sandbox / "end").touch()
    ended = payload.wait(60)
    assert ended is not None
    assert ended.exit_code == 3


@pytest.mark.parametrize("victim", ["supervisor", "fence"])
def test_who_watches_a_payload_is_told_apart_from_it(
    switcher: ContainedSwitcher, sandbox: Path, proxy: Path, tmp_path: Path, victim: str
) -> None:
    number, log = f"6{os.getpid()}.{len(victim)}", tmp_path / "log"
    payload = switcher.launch(
        ["/bin/sh", "-c", f"sleep {number} & sleep {number}"],
        env={},
        sandbox=sandbox,
        proxy=proxy,
        stdout=log,
        stderr=log,
        label="",
    )
    wait_for(lambda: len(sleeping(number)) >= 3)
    supervisor, child = tree(payload._process.pid)[:2]
    os.kill(supervisor if victim == "supervisor" else child, signal.SIGKILL)
    outcome = payload.wait(60)
    assert outcome is not None
    lost = victim == "supervisor" or switcher.contains  # without a fence the child is the payload itself
    assert (outcome.exit_code, bool(outcome.launcher_lost)) == (137, lost)
    assert wait_for(lambda: not sleeping(number))


def test_a_mark_can_be_lowered_and_not_raised(tmp_path: Path) -> None:
    mark = marks.marks_of(tmp_path)[0]
    assert mark not in marks.marks_of(tmp_path / "other")
    code = (
        f"import os, resource, time; kind = resource.RLIMIT_RTTIME; resource.setrlimit(kind, ({mark}, {mark})); "
        "os.setgroups([]) if os.geteuid() == 0 else None; os.setuid(65534) if os.geteuid() == 0 else None\n"
        f"try: resource.setrlimit(kind, ({mark} + 1, {mark} + 1)); print('raised', flush=True)\n"
        "except (ValueError, PermissionError): print('kept', flush=True)\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "kept\n"
        assert marks.marked([mark]) == [process.pid]
        assert marks.end_marked([mark])
        assert process.wait(60) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


def test_death_by_signal_is_told(switcher: ContainedSwitcher, sandbox: Path, proxy: Path) -> None:
    outcome, _ = run(switcher, sandbox, proxy, "kill -KILL $$")
    assert (outcome.exit_code, outcome.signal) == (137, signal.SIGKILL)


def test_kill_gives_grace_and_then_none(
    switcher: ContainedSwitcher, sandbox: Path, proxy: Path, tmp_path: Path
) -> None:
    for script, code in (
        ("trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done", 9),
        ("trap '' TERM; echo up; sleep 700", 137),
    ):
        log = tmp_path / f"log-{code}"
        payload = switcher.launch(
            ["/bin/sh", "-c", script], env={}, sandbox=sandbox, proxy=proxy, stdout=log, stderr=log, label=""
        )
        wait_for(lambda log=log: log.read_text() == "up\n")  # type: ignore[misc]
        assert payload.usage().rss_kib > 0
        payload.kill(20 if code == 9 else 0.5)
        outcome = payload.wait(0)
        assert outcome is not None
        assert outcome.exit_code == code


DAEMON = "trap '' TERM; (setsid setsid sh -c 'trap \"\" TERM; sleep {n} & sleep {n}' &) ; (setsid sleep {n} &); "


def sleeping(number: str) -> list[bytes]:
    """Command lines of living processes that sleep for so long."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes()
            if number.encode() in line:
                lines.append(line)
    return lines


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_daemons_of_a_payload_end_with_it(
    switcher: ContainedSwitcher, sandbox: Path, proxy: Path, tmp_path: Path, how: str
) -> None:
    number, log = f"7{os.getpid()}.{len(how)}", tmp_path / "log"
    last = "until [ -e end ]; do sleep 0.05; done; exit 5" if how == "ends" else f"sleep {number}"
    script = DAEMON.format(n=number) + last
    payload = switcher.launch(
        ["/bin/sh", "-c", script], env={}, sandbox=sandbox, proxy=proxy, stdout=log, stderr=log, label=""
    )
    wait_for(lambda: len(sleeping(number)) >= 3)
    (sandbox / "end").touch()
    if how == "is killed":
        payload.kill(0.2)
    outcome = payload.wait(60)
    assert outcome is not None
    assert outcome.exit_code == (5 if how == "ends" else 137)
    assert wait_for(lambda: not sleeping(number))


def test_daemons_of_a_payload_end_with_its_pilot(
    switcher: ContainedSwitcher, sandbox: Path, proxy: Path, tmp_path: Path
) -> None:
    number, log = f"8{os.getpid()}.1", tmp_path / "log"
    pilot = os.fork()
    if pilot == 0:
        argv = ["/bin/sh", "-c", DAEMON.format(n=number) + f"sleep {number}"]
        switcher.launch(argv, env={}, sandbox=sandbox, proxy=proxy, stdout=log, stderr=log, label="")
        signal.pause()
    wait_for(lambda: len(sleeping(number)) >= 3)
    os.kill(pilot, signal.SIGKILL)
    os.waitpid(pilot, 0)
    assert wait_for(lambda: not sleeping(number))


def test_files_in_and_out(switcher: ContainedSwitcher, sandbox: Path, proxy: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("x")
    switcher.put(sandbox, proxy, {"data": tmp_path / "in"})
    os.symlink("/etc/passwd", sandbox / "link")
    os.mkfifo(sandbox / "fifo")
    (sandbox / "dir").mkdir()
    into = tmp_path / "into"
    into.mkdir()
    found = switcher.get(sandbox, proxy, ["data", "link", "fifo", "dir", "missing"], into, max_bytes=100)
    assert {name: path.read_text() for name, path in found.items()} == {"data": "x"}
    (sandbox / "large").write_bytes(b"x" * 101)
    with pytest.raises(RequestError):
        switcher.get(sandbox, proxy, ["large"], into, max_bytes=100)


def test_removal_copes_with_what_a_payload_leaves(switcher: ContainedSwitcher, tmp_path: Path, proxy: Path) -> None:
    sandbox = switcher.make_sandbox(tmp_path, proxy)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    os.symlink(kept, sandbox / "link")
    (sandbox / "closed" / "deep").mkdir(parents=True)
    (sandbox / "closed" / "deep" / "file").touch()
    (sandbox / "closed").chmod(0)
    switcher.remove(sandbox, proxy)
    switcher.remove(sandbox, proxy)
    assert not sandbox.parent.exists()
    assert stat.S_ISREG((kept / "file").stat().st_mode)


def test_variables_that_are_none() -> None:
    """Names become shell words behind a launcher: only names can."""
    for name, value in (("A B", ""), ("A;id", ""), ("", ""), ("A", "\0")):
        with pytest.raises(RequestError):
            exports({name: value})


def test_a_directory_in_the_place_of_a_file_is_not_read(
    switcher: ContainedSwitcher, sandbox: Path, proxy: Path, tmp_path: Path
) -> None:
    (sandbox / "out").mkdir()
    (sandbox / "out" / "large").write_bytes(bytes(40 << 20))
    (tmp_path / "into").mkdir()
    assert switcher.get(sandbox, proxy, ["out"], tmp_path / "into", max_bytes=10) == {}


def test_files_that_do_not_come_are_not_waited_for(
    tmp_path: Path, proxy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes, "TOOL_TIMEOUT_S", 1)
    switcher = stand_in(tmp_path, "exec sleep 600")
    with pytest.raises(IdentitySwitchError, match="in time"):
        switcher.get(tmp_path, proxy, ["x"], tmp_path, max_bytes=1)
