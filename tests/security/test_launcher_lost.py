"""SIGKILL of every process of the chain in turn: the code, the record, what the pilot is told, and who is left."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.launcher import ALICE_UID, Site, allow_sudo, host_pids, host_status, program_of, wait_for
from support.launcher_mappings import MAPPINGS, mapped_site

from airpanda_demo.worker_node import INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration]

STUBBORN = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; sleep 600' &); sleep 600"
SWITCHER = """
    import json, sys
    sys.path.insert(0, "/run/airpanda/lib")
    from pathlib import Path
    from airpanda.glexec.through_glexec import GlexecSwitcher
    glexec, proxy, here, script = GlexecSwitcher(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    sandbox = glexec.make_sandbox(here, proxy)
    run = glexec.launch(["/bin/sh", "-c", script], env={}, sandbox=sandbox, proxy=proxy, stdout=here / "out",
                        stderr=here / "out", label="PandaID=1")
    end = run.wait(120)
    print(json.dumps([end.exit_code, end.account.uid, end.identity_switched, end.launcher_lost]))
"""
GONE = "the payload's processes are gone"
LOST = {
    "client": "the caller's program was killed",
    "sudo": "sudo, or the process that had started the launcher, was killed",
    "launcher": "the launcher was killed",
    "init": "the first process of the payload's namespace was killed",
    "daemon": "the launcher's service has ended",
    "payload": "",
}
CASES = [
    *(("socket", level) for level in ("client", "launcher", "init", "payload")),
    *(("sudo", level) for level in ("sudo", "launcher", "init", "payload")),
    *(("root", level) for level in ("launcher", "init", "payload")),
]


@pytest.fixture(scope="module", name="site", params=MAPPINGS)
def node_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    for site in mapped_site(request.param, allow_root="yes"):
        allow_sudo(site)
        yield site


@dataclass(frozen=True)
class Caller:
    """One way to the launcher, and whose."""

    site: Site
    how: str

    @property
    def program(self) -> str:
        paths = {"socket": INSTALLED.glexec, "sudo": INSTALLED.glexec_sudo, "root": INSTALLED.launcher}
        return str(paths[self.how])

    def start(self, *command: str, env: dict[str, str], **popen: int) -> subprocess.Popen[bytes]:
        if self.how != "root":
            return self.site.start(*command, env=env, **popen)
        words = [f"{name}={value}" for name, value in env.items()]
        return subprocess.Popen([*self.site.node.root_argv(), *words, *command], start_new_session=True, **popen)

    def own(self, **more: int) -> dict[str, int]:
        return {"uid": 0, **more} if self.how == "root" else dict(more)

    def proxy(self) -> str:
        return str(self.site.put(self.site.proxy().to_pem().reveal(), **self.own()))


def chain(site: Site, marker: str) -> dict[str, list[int]]:
    """Host pids from the payload upwards."""

    def running() -> list[int]:
        found = site.processes(ALICE_UID)
        named = [p for p in found if marker.encode() in command(p)] if len(found) >= 3 else []
        return [p for p in named if int(host_status(p).get("PPid", 0)) not in (0, *found)]  # not its subshell

    payload = wait_for(running)[0]
    init = int(host_status(payload)["PPid"])
    launcher = int(host_status(init)["PPid"])
    above = [p for p in host_pids() if marker.encode() in command(p)]
    return {
        "payload": [payload],
        "init": [init],
        "launcher": [launcher],
        "daemon": [int(host_status(launcher)["PPid"])],
        "sudo": [p for p in above if command(p).split(b"\0")[0].endswith(b"sudo")],
        "client": [p for p in above if program_of(command(p)) == "glexec"],
    }


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def kill(pids: Sequence[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def last_record(site: Site, label: str) -> dict[str, object]:
    records = [record for record in site.node.records() if record["id"] == label]
    return records[-1] if records else {}


@pytest.mark.parametrize(("how", "level"), CASES)
def test_a_foreign_caller_is_never_told_that_nothing_ran(site: Site, how: str, level: str) -> None:
    caller, marker = Caller(site, how), secrets.token_hex(6)
    env = {"GLEXEC_CLIENT_CERT": caller.proxy(), "GLEXEC_ID": marker}
    process = caller.start(
        caller.program, "/bin/sh", "-c", f": {marker}; {STUBBORN}", env=env, stdin=subprocess.DEVNULL
    )
    kill(chain(site, marker)[level])
    assert process.wait(60) in (137, -9)
    assert wait_for(lambda: not site.processes(ALICE_UID))
    record = wait_for(lambda: last_record(site, marker))
    assert (record["rc"], record["uid"], record["identity_switched"]) == (137, ALICE_UID, True)
    assert record.get("lost", "") == LOST[level]
    assert record["dn"] == site.pki.dn("alice")
    assert float(str(record["wall"])) >= 0


@pytest.mark.parametrize(("how", "level"), CASES)
def test_a_pilot_is_told_that_the_launcher_was_lost(site: Site, how: str, level: str) -> None:
    caller, marker = Caller(site, how), secrets.token_hex(6)
    here = site.directory(mode=0o711, **caller.own())
    code = [sys.executable, "-B", "-I", "-c", textwrap.dedent(SWITCHER)]
    process = caller.start(
        *code, caller.program, caller.proxy(), str(here), f": {marker}; {STUBBORN}", env={}, stdout=subprocess.PIPE
    )
    kill(chain(site, marker)[level])
    told = json.loads(process.communicate(timeout=60)[0])
    lost = f"{LOST[level]}; {GONE}" if LOST[level] else ""
    assert told == [137, ALICE_UID, True, lost]
    assert not site.processes(ALICE_UID)


SERVICE = """
    import sys
    sys.path.insert(0, "/run/airpanda/lib")
    from pathlib import Path
    from airpanda.glexec.{module} import main
    sys.exit(main({arguments}))
"""


def service_code(module: str, arguments: str) -> list[str]:
    return [sys.executable, "-B", "-I", "-c", textwrap.dedent(SERVICE.format(module=module, arguments=arguments))]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_service_that_ends_takes_its_payloads_along_and_says_so(site: Site, number: signal.Signals) -> None:
    """A second one beside the node's own, with which the node would end. It waits for them where it is asked to end."""
    marker = secrets.token_hex(6)
    place = Path(f"/run/airpanda/{marker}.socket")
    serve = service_code("launcher.daemon", f"Path({str(INSTALLED.config)!r}), Path({str(place)!r})")
    daemon = subprocess.Popen([*site.node.root_argv(), *serve])
    wait_for(site.node.path(place).exists)
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy()), "GLEXEC_ID": marker}
    ask = service_code("client", f"{str(place)!r}, sys.argv[1:]")
    process = site.start(*ask, "/bin/sh", "-c", f": {marker}; {STUBBORN}", env=env, stderr=subprocess.PIPE)
    (pid,) = chain(site, marker)["daemon"]
    os.kill(pid, number)
    if number is signal.SIGTERM:
        assert daemon.wait(60) == 0
        assert not site.processes(ALICE_UID)
        assert last_record(site, marker)["lost"] == LOST["daemon"]
    told = process.communicate(timeout=60)[1].decode()
    daemon.wait(60)
    assert process.returncode == 137
    assert told == f"glexec: {LOST['daemon']} after the command had started; its processes are ended\n"
    assert wait_for(lambda: not site.processes(ALICE_UID))
    assert last_record(site, marker)["lost"] == LOST["daemon"]


def test_launcher_and_namespace_killed_at_once_leave_the_start_on_record(site: Site) -> None:
    """Nobody is left to write the end; that it ran, and as whom, is there, and the pilot is told no more than that."""
    caller, marker = Caller(site, "socket"), secrets.token_hex(6)
    here = site.directory(mode=0o711)
    code = [sys.executable, "-B", "-I", "-c", textwrap.dedent(SWITCHER)]
    process = caller.start(
        *code, caller.program, caller.proxy(), str(here), f": {marker}; {STUBBORN}", env={}, stdout=subprocess.PIPE
    )
    pids = chain(site, marker)
    for pid in (*pids["launcher"], *pids["init"]):
        os.kill(pid, signal.SIGSTOP)
    kill([*pids["init"], *pids["launcher"]])
    told = json.loads(process.communicate(timeout=60)[0])
    assert told[:3] == [137, ALICE_UID, True]
    assert told[3].startswith("the launcher was killed")
    assert told[3].endswith(GONE)
    assert not site.processes(ALICE_UID)
    assert site.node.events()[-1]["event"] == "started"


def test_a_payload_that_ends_by_itself_is_not_lost_with_its_caller(site: Site) -> None:
    """Its code is on record, though nobody waits for it any more."""
    caller, marker = Caller(site, "socket"), secrets.token_hex(6)
    mark = f"/home/alice/{marker}"
    env = {"GLEXEC_CLIENT_CERT": caller.proxy(), "GLEXEC_ID": marker}
    script = f": {marker}; : > {mark}; while test -e {mark}; do sleep 0.02; done; exit 7"
    process = caller.start(caller.program, "/bin/sh", "-c", script, env=env, stdin=subprocess.DEVNULL)
    outside = site.node.path(Path(mark))
    wait_for(outside.exists)
    clients = [p for p in host_pids() if program_of(command(p)) == "glexec" and marker.encode() in command(p)]
    init = int(host_status(site.processes(ALICE_UID)[0])["PPid"])
    launcher = int(host_status(init)["PPid"])
    os.kill(launcher, signal.SIGSTOP)
    outside.unlink()
    wait_for(lambda: not site.processes(ALICE_UID))
    kill(clients)
    os.kill(launcher, signal.SIGCONT)
    process.wait(60)
    record = wait_for(lambda: last_record(site, marker))
    assert record["rc"] == 7
    assert "lost" not in record
