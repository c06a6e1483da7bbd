"""The launcher behind Debian's real sudo, on a node with the shipped rule: pilot, sudo, launcher, payload."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import (
    ALICE_UID,
    BOB_UID,
    PILOT_UID,
    Site,
    allow_sudo,
    host_pids,
    host_status,
    make_site,
    wait_for,
)
from support.need import need_program
from support.node_processes import command_of, top_of

from airpanda.glexec.through_glexec import GlexecSwitcher
from airpanda_demo.worker_node import INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration]

GLEXEC = str(INSTALLED.glexec_sudo)
STUBBORN = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; sleep 600' &); sleep 600"


@pytest.fixture(scope="module", name="site")
def sudo_site() -> Iterator[Site]:
    for site in make_site():
        allow_sudo(site)
        yield site


@pytest.fixture(scope="module")
def proxy(site: Site) -> str:
    return str(site.put_proxy())


def processes(site: Site, name: bytes, marker: str) -> list[int]:
    """Host pids with this word and this marker in their command line, parents first."""
    found = []
    for pid in host_pids():
        line = command_of(pid)
        if line.split(b"\0")[0].endswith(name) and marker.encode() in line:
            found.append(pid)
    return sorted(found)


def start(site: Site, proxy: str, script: str) -> subprocess.Popen[bytes]:
    env = {"GLEXEC_CLIENT_CERT": proxy}
    return site.start(GLEXEC, "/bin/sh", "-c", script, env=env, stdin=subprocess.DEVNULL)


def test_the_shipped_rule_is_one_that_visudo_accepts(site: Site) -> None:
    visudo = need_program("visudo", "sudo")
    rule = site.node.path(INSTALLED.prefix / "share" / "sudoers")
    checked = subprocess.run([visudo, "-cf", rule], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked
    assert "SETENV" not in rule.read_text()
    assert "*" not in rule.read_text().replace("GLEXEC_*", "")


def test_the_rule_gives_the_launcher_and_nothing_else(site: Site) -> None:
    for command in (["/usr/bin/id"], ["/bin/sh"], [str(INSTALLED.launcherd)], [f"{INSTALLED.prefix}/sbin/../sbin/x"]):
        assert site.run("/usr/bin/sudo", "-n", *command).code == 1, command
    ran = site.run("/usr/bin/sudo", "-n", str(INSTALLED.launcher), "/usr/bin/id", account="alice")
    assert (ran.code, ran.out) == (1, "")


def test_others_than_the_pilot_get_nothing(site: Site) -> None:
    ran = site.run(GLEXEC, "/usr/bin/id", account="bob")
    assert (ran.code, ran.out) == (1, "")


def test_a_payload_runs_as_its_owner(site: Site, proxy: str) -> None:
    ran = site.run(GLEXEC, "/usr/bin/id", "-u", env={"GLEXEC_CLIENT_CERT": proxy})
    assert (ran.code, ran.out) == (0, f"{ALICE_UID}\n"), ran
    record = site.last_record()
    assert (record["launcher"], record["caller"], record["caller_uid"]) == ("sudo", "pilot", PILOT_UID)


def test_a_payload_cannot_use_sudo_itself(site: Site, proxy: str) -> None:
    """Not even if its account had the pilot's rule: what was given up before exec cannot be had back."""
    rule = site.node.path(Path("/etc/sudoers.d/everybody"))
    rule.write_text("ALL ALL=(root) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    try:
        assert site.run("/usr/bin/sudo", "-n", "/usr/bin/id", "-u", account="alice").out == "0\n"
        ran = site.run(GLEXEC, "/usr/bin/sudo", "-n", "/usr/bin/id", "-u", env={"GLEXEC_CLIENT_CERT": proxy})
    finally:
        rule.unlink()
    assert (ran.code, ran.out) == (1, ""), ran


@pytest.mark.parametrize("forged", [{"SUDO_UID": "0"}, {"SUDO_UID": str(BOB_UID), "SUDO_GID": "0"}, {"SUDO_USER": "x"}])
def test_a_forged_caller_is_the_real_one_again(site: Site, proxy: str, forged: dict[str, str]) -> None:
    assert site.run(GLEXEC, "/usr/bin/id", env={"GLEXEC_CLIENT_CERT": proxy, **forged}).code == 0
    assert site.last_record()["caller_uid"] == PILOT_UID
    for variable, value in forged.items():
        ran = site.run("/usr/bin/sudo", "-n", f"{variable}={value}", str(INSTALLED.launcher), "/usr/bin/id")
        assert (ran.code, ran.out) == (1, "")


def test_the_environment_is_built_from_nothing(site: Site, proxy: str) -> None:
    hostile = {
        "PYTHONPATH": "/home/pilot",
        "PYTHONSTARTUP": "/home/pilot/x",
        "GLEXEC_EPILOG_X": "1",
        "GLEXEC_LD_PRELOAD": "/x",
        "LCMAPS_DB_FILE": "/home/pilot/db",
        "X509_CERT_DIR": "/home/pilot/ca",
        "GCONV_PATH": "/home/pilot",
        "TZ": ":/etc/shadow",
        "BASH_ENV": "/home/pilot/x",
    }
    ran = site.run(GLEXEC, "/usr/bin/env", env={"GLEXEC_CLIENT_CERT": proxy, "GLEXEC_ID": "1", **hostile})
    names = {line.split("=", 1)[0] for line in ran.out.splitlines()}
    assert names == {"HOME", "USER", "LOGNAME", "PATH", "GLEXEC_ID", "X509_USER_PROXY"}, ran


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 42", 42), ("exit 202", 204), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)],
)
def test_codes_come_through_sudo(site: Site, proxy: str, script: str, code: int) -> None:
    assert site.run(GLEXEC, "/bin/sh", "-c", script, env={"GLEXEC_CLIENT_CERT": proxy}).code == code


def test_refusals_come_through_sudo(site: Site) -> None:
    assert site.run(GLEXEC, "/usr/bin/id").code == 201
    ran = site.run(GLEXEC, "/usr/bin/id", env={"GLEXEC_CLIENT_CERT": str(site.put_proxy("carol"))})
    assert ran.code == 203


def test_the_pilots_sigterm_reaches_the_payload(site: Site, proxy: str) -> None:
    mark = f"/home/alice/{secrets.token_hex(6)}"
    process = start(site, proxy, f"trap 'echo got > {mark}; exit 9' TERM; : > {mark}.up; while :; do sleep 0.05; done")
    wait_for(lambda: site.node.path(Path(f"{mark}.up")).exists())
    sudo = processes(site, b"sudo", mark)[0]
    assert host_status(sudo)["Uid"].split()[0] in (str(PILOT_UID), "0")
    os.kill(sudo, signal.SIGTERM)
    assert process.wait(60) == 9
    assert site.read(Path(mark)) == "got\n"


@pytest.mark.parametrize("level", ["sudo", "launcher", "init", "payload"])
def test_nothing_survives_sigkill_of_any_process_of_the_chain(site: Site, proxy: str, level: str) -> None:
    marker = secrets.token_hex(6)
    where = site.directory(ALICE_UID)
    env = {"GLEXEC_CLIENT_CERT": proxy, "GLEXEC_TARGET_PROXY": str(where / "x509up")}
    command = ["/bin/sh", "-c", f": {marker}; {STUBBORN}"]
    process = site.start(GLEXEC, *command, env=env, stdin=subprocess.DEVNULL)
    wait_for(lambda: len(site.processes(ALICE_UID)) >= 3)
    payload = top_of(site.processes(ALICE_UID), marker)
    init = int(host_status(payload)["PPid"])
    launcher = int(host_status(init)["PPid"])
    pids = {"sudo": processes(site, b"sudo", marker), "launcher": [launcher], "init": [init], "payload": [payload]}
    for pid in pids[level]:
        os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not site.processes(ALICE_UID))
    process.wait(60)
    assert wait_for(lambda: not list(site.node.path(where).iterdir()))


AS_PILOTS_HOLD_IT = f"""
import sys; sys.path.insert(0, "/run/airpanda/lib")
from pathlib import Path
from airpanda.glexec.through_glexec import GlexecSwitcher
switcher, proxy, here = GlexecSwitcher(Path("{GLEXEC}")), Path(sys.argv[1]), Path("/home/pilot")
log = here / "log"
print(switcher.preflight(proxy).uid)
here.chmod(0o711)
sandbox = switcher.make_sandbox(here, proxy)
def launch(*argv):
    return switcher.launch(argv, env={{}}, sandbox=sandbox, proxy=proxy, stdout=log, stderr=log, label="PandaID=1")
"""
"""The switcher in a process of the pilot's account on the node."""


def as_pilot(site: Site, code: str) -> list[str]:
    code = AS_PILOTS_HOLD_IT + textwrap.dedent(code) + "switcher.remove(sandbox, proxy)\n"
    ran = site.run("/usr/bin/env", "-i", sys.executable, "-I", "-c", code, str(site.put_proxy()))
    assert ran.code == 0, ran
    return ran.out.splitlines()


def test_a_pilot_works_through_it(site: Site) -> None:
    assert GlexecSwitcher(INSTALLED.glexec_sudo).switches
    told = as_pilot(
        site,
        """
        outcome = launch("/bin/sh", "-c", "id -u; echo out > result; exit 7").wait(60)
        got = switcher.get(sandbox, proxy, ["result"], here, max_bytes=1000)
        print(log.read_text().strip(), outcome.exit_code, outcome.account.uid, outcome.identity_switched, list(got))
        """,
    )
    assert told == [str(ALICE_UID), f"{ALICE_UID} 7 {ALICE_UID} True ['result']"]


def test_every_payload_goes_with_its_record_read(site: Site) -> None:
    """The launcher's child has the owner's account, and the wrapper's command line, before its record is written."""
    told = as_pilot(
        site,
        """
        runs = [launch("/bin/true") for _ in range(40)]
        print(sum(run.wait(60).exit_code for run in runs), {(run.record.dn, run.record.launcher) for run in runs})
        """,
    )
    assert told[1:] == [f"0 {{('{site.pki.dn('alice')}', 'sudo')}}"]
