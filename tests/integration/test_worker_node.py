"""The private worker node and the switchers on it: host untouched, identity proven from the host's view."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, BOB_UID, HOME, PILOT_UID, Site, host_status, make_site, running_site, wait_for
from support.node_processes import command_of

import airpanda

pytestmark = [pytest.mark.root, pytest.mark.integration]

PLUGINS = str(Path(airpanda.__file__).parent.parent)


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    yield from make_site()


def on_node(site: Site, code: str, *arguments: str) -> object:
    """Run Python as the pilot on the node, with airpanda importable; what it prints is JSON."""
    preamble = "import sys, json; sys.path.insert(0, '/home/pilot/lib')\n"
    if not site.node.path(HOME / "lib").exists():
        subprocess.run(["cp", "-r", PLUGINS, str(site.node.path(HOME / "lib"))], check=True)
        subprocess.run(["chown", "-R", f"{PILOT_UID}:{PILOT_UID}", str(site.node.path(HOME / "lib"))], check=True)
    ran = site.run(sys.executable, "-B", "-I", "-c", preamble + textwrap.dedent(code), *arguments)
    assert ran.code == 0, ran
    return json.loads(ran.out)


SWITCHER = """
from pathlib import Path
from airpanda.core.errors import AirpandaError
from airpanda.glexec.switchers import GlexecSwitcher
switcher, proxy, work = GlexecSwitcher(Path("/run/airpanda/sbin/glexec")), Path(sys.argv[1]), Path("/home/pilot")
def outcome(run, timeout=60):
    ended = run.wait(timeout)
    return {**vars(ended), "account": vars(ended.account), "proven": run.identity_proven}
"""


def test_the_host_keeps_its_accounts_and_files(site: Site) -> None:
    with pytest.raises(KeyError):
        pwd.getpwuid(ALICE_UID)
    site.run("/bin/sh", "-c", "echo x > /tmp/from-node; echo x > /var/tmp/from-node")
    assert not Path("/tmp/from-node").exists()
    assert not Path("/var/tmp/from-node").exists()
    assert site.run("/usr/bin/id", "-un").out == "pilot\n"


def test_the_node_hides_what_is_the_sites(site: Site) -> None:
    assert site.run("/bin/cat", str(site.secret_dir / "key")).code != 0
    assert site.run("/bin/ls", "/root").out == "" or "pyenv" in site.run("/bin/ls", "-a", "/root").out
    assert site.run("/bin/cat", "/etc/shadow").code != 0


def test_software_is_read_only(site: Site) -> None:
    target = Path(sys.prefix) / "written-by-a-test"
    done = subprocess.run([*site.node.root_argv(), "/bin/touch", str(target)], capture_output=True, text=True)
    assert "Read-only file system" in done.stderr
    assert not target.exists()


def test_enter_script_runs_as_the_pilot(site: Site) -> None:
    done = subprocess.run([site.node.enter, "/bin/sh", "-c", 'echo "$1"; pwd', "-", "a b'c"], capture_output=True)
    assert done.stdout.decode() == "a b'c\n/home/pilot\n"


def test_preflight_maps_to_the_owner(site: Site) -> None:
    found = on_node(site, SWITCHER + "print(json.dumps(vars(switcher.preflight(proxy))))", str(site.put_proxy()))
    assert found == {"name": "alice", "uid": ALICE_UID, "gids": [ALICE_UID]}


def test_a_payload_from_sandbox_to_outputs(site: Site) -> None:
    code = """
    (work / "in.txt").write_text("input")
    box = switcher.make_sandbox(work, proxy)
    switcher.put(box, proxy, {"in.txt": work / "in.txt"})
    run = switcher.launch(
        ["/bin/sh", "-c", 'cat in.txt > out.txt; echo "$0|$A|$HOME|$PWD" ; ls -ln "$X509_USER_PROXY";'
         'ln -s /etc/passwd link; sleep 0.3; exit 7', "a b'c $X"],
        env={"A": "x y\\n'z\\""}, sandbox=box, proxy=proxy,
        stdout=work / "out.log", stderr=work / "err.log", label="label 1")
    first = outcome(run)
    status = box.stat()
    into = work / "outputs"; into.mkdir()
    got = switcher.get(box, proxy, ["out.txt", "link", "missing"], into, max_bytes=1000)
    texts = {name: path.read_text() for name, path in got.items()}
    switcher.remove(box, proxy)
    print(json.dumps({"first": first, "uid": status.st_uid, "mode": status.st_mode & 0o7777, "texts": texts,
        "box": str(box), "left": box.parent.exists(), "out": (work / "out.log").read_text(),
        "err": (work / "err.log").read_text()}))
    """
    found = on_node(site, SWITCHER + textwrap.dedent(code), str(site.put_proxy()))
    assert isinstance(found, dict)
    assert found["first"]["exit_code"] == 7, found
    assert found["first"]["account"] == {"name": "alice", "uid": ALICE_UID, "gids": [ALICE_UID]}
    assert found["first"]["identity_switched"] is True
    assert found["first"]["proven"] is True
    assert (found["uid"], found["mode"]) == (ALICE_UID, 0o700)
    assert found["texts"] == {"out.txt": "input"}
    assert not found["left"]
    line, listing = found["out"].rsplit("\n", 2)[0], found["out"].splitlines()[-1]
    assert line.startswith(f"a b'c $X|x y\n'z\"|{found['box']}|{found['box']}")
    assert listing.startswith(f"-rw------- 1 {ALICE_UID} {ALICE_UID} ")


def test_kill_ends_the_whole_tree_as_seen_from_the_host(site: Site) -> None:
    code = """
    box = switcher.make_sandbox(work, proxy)
    run = switcher.launch(
        ["/bin/sh", "-c", "trap '' TERM; (setsid sleep 600 &) ; sleep 600; sleep 600"],
        env={}, sandbox=box, proxy=proxy, stdout=work / "o2", stderr=work / "e2", label="")
    assert run.wait(0.5) is None
    used = run.usage()
    run.kill(0.5)
    ended = outcome(run)
    switcher.remove(box, proxy)
    print(json.dumps({"ended": ended, "rss": used.rss_kib}))
    """
    found = on_node(site, SWITCHER + textwrap.dedent(code), str(site.put_proxy()))
    assert isinstance(found, dict)
    assert found["ended"]["exit_code"] == 137
    assert found["ended"]["signal"] == signal.SIGKILL
    assert found["rss"] > 0
    assert site.processes(ALICE_UID) == []


def test_containment_on_the_node_is_the_pilots_own_account(site: Site) -> None:
    code = """
    from airpanda.glexec.switchers import ContainedSwitcher
    switcher = ContainedSwitcher(Path("/usr/bin/bwrap"))
    box = switcher.make_sandbox(work, proxy)
    run = switcher.launch(["/bin/sh", "-c", "id -u; ls /tmp"], env={}, sandbox=box, proxy=proxy, stdout=work / "o3",
        stderr=work / "e3", label="")
    ended = outcome(run)
    switcher.remove(box, proxy)
    print(json.dumps({"ended": ended, "out": (work / "o3").read_text()}))
    """
    found = on_node(site, SWITCHER + textwrap.dedent(code), str(site.put_proxy()))
    assert isinstance(found, dict)
    assert found["out"] == f"{PILOT_UID}\n"
    assert found["ended"]["account"]["uid"] == PILOT_UID
    assert found["ended"]["identity_switched"] is False


def test_two_people_run_under_two_accounts(site: Site) -> None:
    uids = {}
    for who in ("alice", "bob"):
        proxy = site.put_proxy(who)
        process = site.start(
            site.glexec, "/bin/sleep", "30", env={"GLEXEC_CLIENT_CERT": str(proxy)}, stdin=subprocess.DEVNULL
        )
        wanted = {"alice": ALICE_UID, "bob": BOB_UID}[who]
        uids[who] = wait_for(lambda uid=wanted: [p for p in site.processes(uid) if b"sleep" in command_of(p)])
        for pid in uids[who]:
            assert host_status(pid)["Uid"].split() == [str(wanted)] * 4
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert wait_for(lambda uid=wanted: not site.processes(uid))


def test_removing_a_mapping_refuses_the_next_launch_unharmed(site: Site) -> None:
    proxy = site.put_proxy()
    site.node.set_mapfile({site.pki.dn("bob"): "bob"})
    try:
        code = "try:\n  switcher.preflight(proxy)\nexcept AirpandaError as e: print(json.dumps([e.exit_code, str(e)]))"
        found = on_node(site, SWITCHER + code, str(proxy))
    finally:
        site.node.set_mapfile(site.mapfile)
    assert isinstance(found, list)
    assert found[0] == 203
    assert "no line for this DN" in found[1]


def test_everything_ends_with_the_nodes_first_process() -> None:
    with running_site() as one:
        process = one.start(
            one.glexec, "/bin/sleep", "600", env={"GLEXEC_CLIENT_CERT": str(one.put_proxy())}, stdin=subprocess.DEVNULL
        )
        wait_for(lambda: one.processes(ALICE_UID))
        os.kill(one.node.init_pid, signal.SIGKILL)
        process.wait(60)
        assert wait_for(lambda: not one.processes(ALICE_UID) and not one.processes(PILOT_UID))


def test_everything_ends_with_the_program_that_started_the_node() -> None:
    with running_site() as one:
        supervisor = one.node._supervisor
        assert supervisor is not None
        supervisor.kill()
        assert wait_for(lambda: not host_status(one.node.init_pid))
