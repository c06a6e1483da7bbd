"""Dynamic uids on a running launcher: nobody gets a number that still means somebody else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import PILOT_UID, Site, host_status, wait_for
from support.launcher_mappings import LEASES, authorise, ban, mapped_site
from support.node_processes import command_of

pytestmark = [pytest.mark.root, pytest.mark.integration]

FIRST, COUNT = 1_500_000_000 + os.getpid() % 10_000 * 100, 3
UIDS = range(FIRST, FIRST + COUNT)
PAYLOADS = Path("/run/payloads")
NO_PROXY = {"GLEXEC_TARGET_PROXY": "/dev/null"}


@pytest.fixture(scope="module", name="node")
def dynamic_site() -> Iterator[Site]:
    for site in mapped_site("dynamic", uid_range=f"{UIDS[0]}-{UIDS[-1]}", payload_dirs=str(PAYLOADS)):
        payloads = site.node.path(PAYLOADS)
        payloads.mkdir()
        os.chown(payloads, PILOT_UID, PILOT_UID)
        payloads.chmod(0o711)
        yield site


@pytest.fixture(name="site")
def fresh(node: Site) -> Iterator[Site]:
    """The node without any lease and without files of payloads."""
    yield node
    for directory in (LEASES, PAYLOADS):
        for path in node.node.path(directory).iterdir() if node.node.path(directory).exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    authorise(node, "alice", "bob")


def uid_of(site: Site, who: str) -> int:
    ran = site.glexec_run("/usr/bin/id", "-u", proxy=site.put_proxy(who))
    assert ran.code == 0, ran
    assert site.last_record()["uid"] == int(ran.out)
    return int(ran.out)


def forget(site: Site) -> None:
    """All leases have been idle for a long time."""
    for path in site.node.path(LEASES).iterdir():
        os.utime(path, (0, 0))


def others(site: Site) -> None:
    """The whole range is other people's, who left it long ago."""
    people = ["carol", "dave", "erin"]
    authorise(site, "alice", "bob", *people)
    assert {uid_of(site, who) for who in people} == set(UIDS)
    forget(site)


def test_who_is_not_authorised_or_banned_gets_none(site: Site) -> None:
    assert site.glexec_run("/usr/bin/id", proxy=site.put_proxy("carol")).code == 203
    ban(site, "alice")
    assert site.glexec_run("/usr/bin/id").code == 203
    ban(site)
    assert not site.node.path(LEASES).exists() or not list(site.node.path(LEASES).iterdir())


def test_the_account_knows_its_name_and_nothing_else_changes(site: Site) -> None:
    script = "id -un; id -gn; id -G; echo ~; getent passwd pilot | cut -d: -f1"
    ran = site.glexec_run("/bin/sh", "-c", script)
    uid = site.last_record()["uid"]
    assert uid in UIDS
    assert ran.out == f"dyn{uid}\ndyn{uid}\n{uid}\n/tmp\npilot\n", ran
    assert "dyn" not in site.node.path(Path("/etc/passwd")).read_text()


def test_identity_from_outside(site: Site) -> None:
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy())}
    process = site.start(site.glexec, "/bin/sleep", "300", env=env, stdin=subprocess.DEVNULL)
    try:
        wanted = b"/bin/sleep\x00300"
        [pid] = wait_for(lambda: [p for uid in UIDS for p in site.processes(uid) if command_of(p).startswith(wanted)])
        uid = host_status(pid)["Uid"].split()[0]
        assert host_status(pid)["Gid"].split() == host_status(pid)["Uid"].split() == [uid] * 4
        assert host_status(pid)["Groups"].split() == [uid]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_people_and_roles_do_not_share(site: Site) -> None:
    first = uid_of(site, "alice")
    assert uid_of(site, "bob") != first
    assert uid_of(site, "alice") == first


def test_nothing_can_be_written_elsewhere(site: Site) -> None:
    for place in ("/run/open", "/etc/open"):
        outside = site.node.path(Path(place))
        outside.mkdir(exist_ok=True)
        outside.chmod(0o777)
        ran = site.glexec_run("/bin/sh", "-c", f"echo x > {place}/x", env=NO_PROXY)
        assert ran.code != 0
        assert "Read-only" in ran.err
        assert not list(outside.iterdir())
    open_to_all = site.directory(mode=0o777, where=PAYLOADS)
    assert site.glexec_run("/bin/sh", "-c", f"echo x > {open_to_all}/x; echo > /tmp/y; echo > /dev/null").code == 0
    assert site.node.path(open_to_all / "x").stat().st_uid in UIDS


def test_read_only_cannot_be_undone_in_a_user_namespace(site: Site) -> None:
    outside = site.node.path(Path("/run/open"))
    outside.mkdir(exist_ok=True)
    outside.chmod(0o777)
    script = "unshare -Urm sh -c 'mount -o remount,bind,rw /run; mount -o remount,rw /run; echo x > /run/open/x'"
    assert site.glexec_run("/bin/sh", "-c", script, env=NO_PROXY).code != 0
    assert not list(outside.iterdir())


def test_a_sandbox_works_and_its_files_are_gone_before_the_next_owner(site: Site) -> None:
    sandbox = site.directory(mode=0o733, where=PAYLOADS)
    script = f"mkdir -m 700 {sandbox}/in && cd {sandbox}/in && echo secret > mine && ln mine again && chmod 0 mine"
    assert site.glexec_run("/bin/sh", "-c", script, proxy=site.put_proxy("bob"), env=NO_PROXY).code == 0
    former = site.last_record()["uid"]
    authorise(site, "alice", "bob", "carol", "dave")
    uid_of(site, "carol")
    uid_of(site, "dave")
    forget(site)
    os.utime(site.node.path(LEASES / str(site.last_record()["lease"])))
    found = set()
    for who in ("erin", "alice"):
        authorise(site, "alice", "erin")
        found.add(uid_of(site, who))
    assert former in found
    assert list(site.node.path(sandbox).iterdir()) == []


def test_a_running_owner_keeps_the_uid_whatever_the_clock_says(site: Site) -> None:
    others(site)
    authorise(site, "alice", "bob", "frank")
    environments = [{"GLEXEC_CLIENT_CERT": str(site.put_proxy(who))} for who in ("alice", "bob", "frank")]
    running = [site.start(site.glexec, "/bin/sleep", "300", env=env, stdin=subprocess.DEVNULL) for env in environments]
    try:
        wait_for(lambda: len([pid for uid in UIDS for pid in site.processes(uid)]) == COUNT)
        forget(site)
        authorise(site, "grace")
        assert site.glexec_run("/usr/bin/id", proxy=site.put_proxy("grace")).code == 203
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    wait_for(lambda: not [pid for uid in UIDS for pid in site.processes(uid)])

    def is_served() -> bool:
        """A launcher touches the lease when it is over, which may be some time after its payload is."""
        forget(site)
        return site.glexec_run("/usr/bin/id", proxy=site.put_proxy("grace")).code == 0

    wait_for(is_served)
    assert uid_of(site, "grace") in UIDS


def test_remains_that_cannot_be_removed_keep_the_uid_out_of_use(site: Site) -> None:
    others(site)
    for uid in UIDS:
        place = site.node.path(site.directory(uid, where=PAYLOADS))
        (place / "roots").touch()
    assert site.glexec_run("/usr/bin/id").code == 203
    assert sorted(path.name for path in site.node.path(LEASES).iterdir()) == [f"{uid}-leaving" for uid in UIDS]
    shutil.rmtree(next(iter(site.node.path(PAYLOADS).iterdir())))
    assert uid_of(site, "alice") in UIDS


def test_thirty_launches_of_one_person_take_one_lease(site: Site) -> None:
    others(site)
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy())}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    processes = [site.start(site.glexec, "/usr/bin/id", "-u", env=env, **pipes) for _ in range(30)]
    outputs = {process.communicate(timeout=120)[0] for process in processes}
    assert len(outputs) == 1
    assert int(outputs.pop()) in UIDS


@pytest.mark.parametrize("fault", ["lease_dir", "payload parent", "authorised", "account"])
def test_unsafe_or_contradictory_site_is_202(site: Site, fault: str) -> None:
    uid_of(site, "alice")
    places = {
        "lease_dir": LEASES,
        "payload parent": PAYLOADS.parent,
        "authorised": Path("/etc/grid-security/authorised"),
    }
    if fault == "account":
        passwd = site.node.path(Path("/etc/passwd"))
        text = passwd.read_text()
        passwd.write_text(f"{text}x:x:{FIRST}:{FIRST}::/:/bin/sh\n")
        try:
            assert site.glexec_run("/usr/bin/id").code == 202
        finally:
            passwd.write_text(text)
        return
    outside = site.node.path(places[fault])
    mode = outside.stat().st_mode & 0o7777
    outside.chmod(mode | 0o002)
    try:
        assert site.glexec_run("/usr/bin/id").code == 202
    finally:
        outside.chmod(mode)
