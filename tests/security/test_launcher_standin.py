"""The switcher with a launcher that is not ours: a stand-in with gLExec's contract, which changes uid for real.

It knows nothing of our record, and its payload is its child in the same PID namespace, as with real gLExec.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, HOME, PILOT_UID, Site, make_site, wait_for

import airpanda
from airpanda.glexec.gate import exports
from airpanda.glexec.through_glexec import _START, STARTED_MARK
from airpanda_demo.worker_node import INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration]

PLACE = Path("/run/standin")
_CAPABILITIES = struct.pack("<5I", 0x02000001, 1 << 6 | 1 << 7, 0, 0, 0)  # setgid, setuid, effective

STAND_IN = f"""#!/bin/sh
target() {{ {PLACE}/setpriv --reuid {ALICE_UID} --regid {ALICE_UID} --clear-groups "$@"; }}
[ "$(stat -c %a "$GLEXEC_CLIENT_CERT")" = 600 ] || exit 201
! [ -e {PLACE}/denied ] || exit 203
[ -e {PLACE}/in-place ] || trap '' TERM
proxy=$GLEXEC_TARGET_PROXY
if [ "$proxy" != /dev/null ]; then
    target /bin/sh -c 'umask 077; set -C; cat > "$0"' "$proxy" < "$GLEXEC_SOURCE_PROXY" || exit 201
fi
! [ -e {PLACE}/in-place ] ||
    exec {PLACE}/setpriv --reuid {ALICE_UID} --regid {ALICE_UID} --clear-groups /usr/bin/env -i PATH="$PATH" "$@"
! [ -e {PLACE}/lies ] || cat {PLACE}/lies > "$GLEXEC_RECORD"
limit=
! [ -e {PLACE}/no-forks ] || limit="/usr/bin/prlimit --nproc=0"
target $limit /usr/bin/env -i HOME=/home/alice PATH="$PATH" X509_USER_PROXY="$proxy" "$@"
code=$?
! [ -e {PLACE}/epilogue-fails ] || exit 202
[ "$proxy" = /dev/null ] || target /bin/rm -f "$proxy"
case $code in 201|202|203|204) exit 204;; *) exit $code;; esac
"""

PREAMBLE = f"""
import sys, json
sys.path.insert(0, "{HOME}/lib")
from pathlib import Path
from airpanda.core.errors import IdentitySwitchError
from airpanda.glexec.switchers import GlexecSwitcher
switcher, proxy, work = GlexecSwitcher(Path("{PLACE}/glexec")), Path(sys.argv[1]), Path("{HOME}")
def launch(*argv):
    return switcher.launch(argv, env={{"A": "b c"}}, sandbox=box, proxy=proxy, stdout=work / "out", stderr=work / "out",
                           label="x")
def told(run, timeout=60):
    ended = run.wait(timeout)
    return [ended.exit_code, ended.account.uid, ended.identity_switched, run.identity_proven]
box = switcher.make_sandbox(work, proxy)
"""


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    for site in make_site():
        place = site.node.path(PLACE)
        place.mkdir()
        # The node's own file systems take no setuid files and no capabilities.
        mount = [*site.node.root_argv(), "/bin/mount", "-t", "tmpfs", "none", str(PLACE)]
        subprocess.run(mount, check=True, timeout=30)
        shutil.copyfile("/usr/bin/setpriv", place / "setpriv")
        os.setxattr(place / "setpriv", "security.capability", _CAPABILITIES)
        (place / "glexec").write_text(STAND_IN)
        for name in ("setpriv", "glexec"):
            (place / name).chmod(0o755)
        lib = site.node.path(HOME / "lib")
        shutil.copytree(Path(airpanda.__file__).parent.parent, lib, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chown", "-R", f"{PILOT_UID}:{PILOT_UID}", str(lib)], check=True)
        yield site


def on_node(site: Site, code: str) -> object:
    ran = site.run(sys.executable, "-B", "-I", "-c", PREAMBLE + textwrap.dedent(code), str(site.put_proxy()))
    assert ran.code == 0, ran
    return json.loads(ran.out)


def test_identity_is_proven_from_the_process_tree(site: Site) -> None:
    found = on_node(
        site,
        """
        run = launch("/bin/sh", "-c", "sleep 3; exit 5")
        import time
        seen = []
        while run.wait(0.1) is None: seen.append(run.usage().rss_kib)
        print(json.dumps([told(run), max(seen) > 0]))
        """,
    )
    assert found == [[5, ALICE_UID, True, True], True]


def test_a_payload_that_is_over_at_once(site: Site) -> None:
    """Its account was looked at before it was let go, so even this one is proven."""
    found = on_node(site, 'run = launch("/bin/sh", "-c", "exit 126"); print(json.dumps(told(run)))')
    assert found == [126, ALICE_UID, True, True]


DAEMONS = "(setsid setsid sh -c 'sleep 801; true' &); sleep 801 & sleep 801"


def test_a_launcher_that_was_killed_is_lost_and_what_it_left_is_ended(site: Site) -> None:
    """It has no namespace for its payload: daemons are found by their mark, and killed as their owner."""
    found = on_node(
        site,
        f"""
        import os, signal, time
        run = launch("/bin/sh", "-c", "{DAEMONS}")
        time.sleep(0.5)
        os.kill(run._process.pid, signal.SIGKILL)
        end = run.wait(60)
        print(json.dumps([end.exit_code, end.launcher_lost]))
        """,
    )
    assert found == [137, "the launcher was killed (signal 9); the payload's processes are gone"]
    assert not site.processes(ALICE_UID)


AFTER_THE_ACCOUNT = f"""
    from airpanda.glexec import through_glexec as module
    event, ids_of, seen = module.ThroughGlexec._event, module.ids_of, []
    def look(pid):
        ids = ids_of(pid)
        if ids and ids.uids[0] == {ALICE_UID}: seen.append(pid)
        return ids
    module.ids_of = look
    module.ThroughGlexec._event = lambda self, name, *a, **k: (
        None if name == "started" and not seen else event(self, name, *a, **k))
"""
"""What the record says comes after the wrapper was seen to run under the owner's account."""


@pytest.mark.parametrize("late", ["", AFTER_THE_ACCOUNT], ids=["before the account", "after the account"])
@pytest.mark.parametrize("name", ["nobody", "bob"])
def test_a_record_about_nobody_or_somebody_else_lets_nothing_go(site: Site, name: str, late: str) -> None:
    """The account would be right, and still nobody could say why; also where it is read after the account was seen."""
    bob = {"dn": site.pki.dn("bob"), "fqans": [], "issuer": "i", "serial": "1", "fingerprint": "0" * 64}
    words = {**(bob if name == "bob" else {}), "lease": None, "launcher": "socket", "mapping": "own"}
    ids = {"event": "started", "pid": 1, "uid": ALICE_UID, "gid": ALICE_UID, "account": "alice"}
    code = (
        late
        + """
    lies = Path("/run/standin/lies")
    (work / "go").touch()
    import time
    while not lies.exists(): time.sleep(0.02)
    try:
        launch("/bin/sh", "-c", "echo reached >> /home/alice/reached")
    except IdentitySwitchError as error:
        print(json.dumps(str(error)))
    """
    )
    command = [sys.executable, "-B", "-I", "-c", PREAMBLE + textwrap.dedent(code), str(site.put_proxy())]
    process = subprocess.Popen(site.argv(*command), stdout=subprocess.PIPE)
    go, lies = site.node.path(HOME / "go"), site.node.path(PLACE / "lies")
    wait_for(go.exists)
    fresh = lies.with_name("lies.new")
    fresh.write_text(json.dumps({**ids, **words}) + "\n")
    fresh.rename(lies)
    try:
        told = json.loads(process.communicate(timeout=60)[0])
    finally:
        lies.unlink()
        go.unlink()
    assert ("another credential" if name == "bob" else "does not say dn") in told
    assert not site.node.path(Path("/home/alice/reached")).exists()
    assert wait_for(lambda: not site.processes(ALICE_UID))


REFUSED = """
try:  # the account of a wrapper that ends at once is seen or not: the refusal is said by either of the two
    run = launch("/bin/sh", "-c", "echo reached >> /home/alice/reached")
    print(json.dumps(run.wait(60).exit_code))
except IdentitySwitchError as error:
    print(json.dumps([error.exit_code, "cannot be entered or written to" in str(error)]))
"""


def test_a_command_that_was_never_reached_is_no_failure_of_it(site: Site) -> None:
    """Its account was seen, but the wrapper cannot write to the sandbox any more."""
    blocked = 'switcher._tool(["/bin/mkdir", str(box / ".airpanda-started")], proxy, cwd=work).finish()'
    assert on_node(site, blocked + REFUSED) == [202, True]
    assert not site.node.path(Path("/home/alice/reached")).exists()


def test_an_earlier_start_in_the_sandbox_is_not_this_ones(site: Site) -> None:
    """A carrier has run there before; then the wrapper cannot write its mark, and its code is not the payload's."""
    earlier = """
    assert told(launch("/bin/true"))[0] == 0
    assert told(launch("/bin/sh", "-c", "exit 126"))[0] == 126
    switcher._tool(["/bin/chmod", "0400", str(box / ".airpanda-started")], proxy, cwd=work).finish()
    """
    assert on_node(site, textwrap.dedent(earlier) + REFUSED) == [202, True]
    assert not site.node.path(Path("/home/alice/reached")).exists()


def test_a_shell_that_cannot_fork_is_no_failure_of_the_command(site: Site) -> None:
    """dash would end with 2 then."""
    with set_up(site, "no-forks"):
        assert on_node(site, REFUSED) == [202, True]
    assert not site.node.path(Path("/home/alice/reached")).exists()


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_codes_are_the_commands_own_in_any_shell(tmp_path: Path, shell: str) -> None:
    given = exports({"A": "b c"}, 77)
    for script, whole, code in (("exit 7", True, 7), ("test \"$A\" = 'b c'", True, 0), ("exit 7", False, 126)):
        words = [shell, "-c", _START, str(tmp_path), "/bin/sh", "-c", script]
        done = subprocess.run(words, input=given if whole else given[:-9], capture_output=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b""), script
    assert (tmp_path / STARTED_MARK).read_text() == "77\n77\n"


@contextlib.contextmanager
def set_up(site: Site, what: str) -> Iterator[None]:
    flag = site.node.path(PLACE / what)
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


def test_a_launcher_that_fails_after_the_payload_is_no_payloads_code(site: Site) -> None:
    """As real gLExec whose epilogue fails; the preflight and the sandbox came before."""
    code = """
    flag = Path("/home/pilot/go")
    flag.touch()
    import time
    while flag.exists(): time.sleep(0.02)
    end = launch("/bin/sh", "-c", "exit 0").wait(60)
    print(json.dumps([end.exit_code, end.launcher_lost]))
    """
    command = [sys.executable, "-B", "-I", "-c", PREAMBLE + textwrap.dedent(code), str(site.put_proxy())]
    process = subprocess.Popen(site.argv(*command), stdout=subprocess.PIPE)
    go = site.node.path(HOME / "go")
    wait_for(go.exists)
    with set_up(site, "epilogue-fails"):
        go.unlink()
        out = process.communicate(timeout=60)[0]
    assert json.loads(out) == [137, "the launcher itself ended with 202; the payload's processes are gone"]


def test_a_launcher_that_becomes_the_payload(site: Site) -> None:
    """As real gLExec with linger = no: its own death is the payload's, and it can be signalled through it only."""
    with set_up(site, "in-place"):
        found = on_node(
            site,
            """
            first = launch("/bin/sh", "-c", "exit 5")
            second = launch("/bin/sh", "-c", "kill -KILL $$")
            import time
            def up(n):
                while (work / "out").read_text().count("up") < n: time.sleep(0.02)
            third = launch("/bin/sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
            up(1)
            third.kill(20)
            fourth = launch("/bin/sh", "-c", "trap '' TERM; echo up; sleep 802 & sleep 802")
            up(2)
            fourth.kill(0.5)
            ends = [run.wait(60) for run in (first, second, third, fourth)]
            print(json.dumps([[end.exit_code, end.launcher_lost, end.account.uid] for end in ends]))
            """,
        )
    assert found == [[5, "", ALICE_UID], [137, "", ALICE_UID], [9, "", ALICE_UID], [137, "", ALICE_UID]]
    assert not site.processes(ALICE_UID)


def test_kill_reaches_a_payload_that_the_launcher_would_leave_behind(site: Site) -> None:
    found = on_node(
        site,
        """
        run = launch("/bin/sh", "-c", "trap '' TERM; sleep 800 & sleep 800")
        run.kill(0.5)
        print(json.dumps(told(run)[0]))
        """,
    )
    assert found == 137
    assert wait_for(lambda: not site.processes(ALICE_UID))


def test_a_refusal_after_the_preflight_is_no_payload(site: Site) -> None:
    code = """
    (work / "go").touch()
    import subprocess, time
    while not Path("/run/standin/denied").exists(): time.sleep(0.05)
    try:
        launch("/bin/true")
    except IdentitySwitchError as error:
        print(json.dumps(error.exit_code))
    """
    denied, go = site.node.path(PLACE / "denied"), site.node.path(HOME / "go")
    go.unlink(missing_ok=True)
    command = [sys.executable, "-B", "-I", "-c", PREAMBLE + textwrap.dedent(code), str(site.put_proxy())]
    process = subprocess.Popen(site.argv(*command), stdout=subprocess.PIPE)
    wait_for(go.exists)
    denied.touch()
    try:
        assert process.communicate(timeout=60)[0] == b"203\n"
    finally:
        denied.unlink()


SBIN = INSTALLED.prefix / "sbin"
LOCATIONS = {
    "OSG_GLEXEC_LOCATION": PLACE / "glexec",
    "GLEXEC_LOCATION": PLACE / "of-glexec",
    "GLITE_LOCATION": PLACE / "of-glite",
}


@pytest.fixture(params=list(LOCATIONS))
def found_by(request: pytest.FixtureRequest, site: Site) -> dict[str, str]:
    """The environment of a site that says in this way where its gLExec is."""
    for name in ("of-glexec", "of-glite"):
        program = site.node.path(PLACE / name / "sbin" / "glexec")
        program.parent.mkdir(parents=True, exist_ok=True)
        program.unlink(missing_ok=True)
        program.symlink_to(PLACE / "glexec")
    return {request.param: str(LOCATIONS[request.param]), "GLEXEC_CLIENT_CERT": str(site.put_proxy())}


def test_the_twins_work_with_it_wherever_it_is(site: Site, found_by: dict[str, str]) -> None:
    site.node.path(HOME).chmod(0o711)
    made = site.run(str(SBIN / "mkgltempdir"), "-m", "0711", str(HOME), env=found_by)
    assert made.code == 0, made
    inner = Path(made.out.strip())
    outside = site.node.path(inner)
    assert (outside.stat().st_uid, outside.stat().st_mode & 0o777) == (ALICE_UID, 0o700)
    assert (outside.parent.stat().st_uid, outside.parent.stat().st_mode & 0o777) == (PILOT_UID, 0o711)
    env = {**found_by, "GLEXEC_TARGET_PROXY": "/dev/null", "GLEXEC_SOURCE_PROXY": found_by["GLEXEC_CLIENT_CERT"]}
    script = f'"$0" /bin/sh -c "id -u > {inner}/who"'
    assert site.run("/bin/sh", "-c", script, str(PLACE / "glexec"), env=env).code == 0
    assert (outside / "who").read_text() == f"{ALICE_UID}\n"
    for options, code in ((["-r"], 0), (["-r"], 201), (["-r", "-f"], 0)):
        assert site.run(str(SBIN / "mkgltempdir"), *options, str(inner), env=found_by).code == code
    assert not outside.parent.exists()


def test_a_refusal_of_it_comes_through_the_twins(site: Site, found_by: dict[str, str]) -> None:
    before = {path.name for path in site.node.path(HOME).iterdir()}
    with set_up(site, "denied"):
        ran = site.run(str(SBIN / "mkgltempdir"), str(HOME), env=found_by)
    assert (ran.code, ran.out) == (203, "")
    assert {path.name for path in site.node.path(HOME).iterdir()} == before


def test_pilots_find_it(site: Site, found_by: dict[str, str]) -> None:
    """In the order of their time, and it is what they then use."""
    code = """
    import os
    from airpanda.glexec.contract import find_glexec
    found = find_glexec(os.environ)
    print(json.dumps([found, GlexecSwitcher(Path(found)).preflight(proxy).uid]))
    """
    command = [sys.executable, "-B", "-I", "-c", PREAMBLE + textwrap.dedent(code), found_by["GLEXEC_CLIENT_CERT"]]
    ran = site.run(*command, env=found_by)
    variable = next(name for name in LOCATIONS if name in found_by)
    place = LOCATIONS[variable]
    expected = place if variable == "OSG_GLEXEC_LOCATION" else place / "sbin" / "glexec"
    assert json.loads(ran.out) == [str(expected), ALICE_UID], ran
