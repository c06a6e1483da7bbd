"""What goes wrong between us and a batch system, on real Slurm: no drill may double, lose or misname a pilot."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.batch_rig import Rig, make_rig
from support.elements import SLEEP, batch, queue_of, until
from support.launcher import PILOT_UID
from support.sshd import Proxy

from airpanda.computing.elements import (
    CEUnavailableError,
    Handle,
    InvalidDescriptionError,
    PilotJobState,
    Submission,
    SubmitUncertainError,
    ThrottledError,
)
from airpanda.computing.local import LocalElement

pytestmark = [pytest.mark.root, pytest.mark.integration]
TIMED_OUT = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'


@pytest.fixture(scope="module", name="rig")
def module_rig() -> Iterator[Rig]:
    yield from make_rig()


@pytest.fixture(autouse=True)
def tidy(rig: Rig) -> Iterator[None]:
    yield
    rig.tidy()


@contextmanager
def relay(rig: Rig) -> Iterator[Proxy]:
    """A way to the sshd that a drill can break."""
    proxy = Proxy(rig.sshd.port, lambda _: True)
    known = rig.sshd.known_hosts.read_text()
    rig.sshd.known_hosts.write_text(known + known.replace(f":{rig.sshd.port} ", f":{proxy.port} "))
    try:
        yield proxy
    finally:
        rig.close_elements()
        proxy.close()
        rig.sshd.known_hosts.write_text(known)


# --- submissions that end badly ------------------------------------------------------------------------------


def test_sbatch_that_times_out_after_the_job_was_in_is_a_submission(rig: Rig) -> None:
    with rig.replaced("sbatch", f'real "$@" >/dev/null; {TIMED_OUT}'):
        submission = rig.element(SLEEP, "local").submit(batch("late", 1, 2))
    assert sorted(rig.jobs("late")) == ["0", "1"]
    again = rig.element(SLEEP, "ssh").submit(batch("late", 1, 2))
    assert again.handles == submission.handles
    assert sorted(rig.jobs("late")) == ["0", "1"]


def test_sbatch_that_times_out_without_a_trace_is_uncertain_and_keeps_what_the_job_would_need(rig: Rig) -> None:
    with rig.replaced("sbatch", TIMED_OUT), pytest.raises(SubmitUncertainError, match="timed out"):
        rig.element(SLEEP, "local").submit(batch("gone", 1))
    assert rig.path("gone/0/pilot.json").exists()
    assert not rig.element(SLEEP, "local").submit(batch("gone", 1)).adopted
    assert rig.jobs("gone") == ["0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "nope"}, "invalid partition"),
        ({"options": ["--no-such-option"]}, "unrecognized option"),
        ({"options": ["--constraint=$(touch /tmp/hit)"]}, "Invalid feature"),
    ],
)
def test_what_sbatch_refuses_is_invalid_and_leaves_nothing(rig: Rig, options: dict[str, object], words: str) -> None:
    for via in ("local", "ssh"):
        element = rig.element(SLEEP, via, **options)
        with pytest.raises(InvalidDescriptionError, match=words):
            element.submit(batch("refused", 1))
        assert not rig.path("refused").exists()
        assert element.find("refused") == {}
    assert not rig.site.node.path(Path("/tmp/hit")).exists()


def test_a_sites_options_cannot_replace_ours(rig: Rig) -> None:
    options = ["--job-name=other", "--array=0-9", "--export=ALL", "--comment=a b;'c"]
    rig.element(SLEEP, "ssh", options=options).submit(batch("mine", 1))
    assert rig.jobs("mine") == ["0"]
    assert rig.jobs("other") == []


def test_a_full_disk_submits_nothing(rig: Rig) -> None:
    rig.slurm.root("mkdir", "/home/pilot/small")
    options = f"size=256k,mode=0755,uid={PILOT_UID}"
    rig.slurm.root("mount", "-t", "tmpfs", "-o", options, "tmpfs", "/home/pilot/small")
    element = rig.element(SLEEP, "local", directory="/home/pilot/small")
    with pytest.raises(CEUnavailableError, match=r"cannot be written.*No space"):
        element.submit(batch("full", *range(1000)))
    assert rig.jobs("full") == []
    assert element.find("full") == {}
    assert list(rig.site.node.path(Path("/home/pilot/small")).iterdir()) == [
        rig.site.node.path(Path("/home/pilot/small/.submit.lock"))
    ]
    assert element.submit(batch("full", 1)).handles


def test_a_full_disk_starts_no_local_pilot_and_a_repeat_starts_what_is_missing(rig: Rig) -> None:
    """The node's disk fills in the middle of a batch."""
    rig.slurm.root("mkdir", "/home/pilot/tiny")
    options = f"size=256k,mode=0755,uid={PILOT_UID}"
    rig.slurm.root("mount", "-t", "tmpfs", "-o", options, "tmpfs", "/home/pilot/tiny")
    ce = {"enter": [str(rig.site.node.enter)], "account": "pilot", "directory": "/home/pilot/tiny", "max_pilots": 100}
    element = LocalElement(queue_of("local", ce), SLEEP, grace_s=0.0)
    whole = batch("tiny", *range(30))
    with pytest.raises(CEUnavailableError, match=r"cannot be started.*No space"):
        element.submit(whole)
    there = element.find("tiny")
    assert 0 < len(there) < 30
    assert {status.state for status in there.values()} == {PilotJobState.RUNNING}
    rig.slurm.root("mount", "-o", "remount,size=8m", "/home/pilot/tiny")
    submission = element.submit(whole)
    assert len(submission.adopted) == len(there)
    assert {status.state for status in element.find("tiny").values()} == {PilotJobState.RUNNING}
    assert len(element.find("tiny")) == 30
    handles = list(submission.handles.values())
    element.cancel(handles)
    until(lambda: all(status.state.is_final for status in element.status(handles).values()))


def test_a_site_that_is_full_asks_for_patience(rig: Rig) -> None:
    said = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, "
    said += "user's size and/or time limits)"
    with rig.replaced("sbatch", f'echo "{said}" >&2; exit 1'), pytest.raises(ThrottledError) as caught:
        rig.element(SLEEP, "local").submit(batch("busy", 1))
    assert caught.value.transient
    assert not rig.path("busy").exists()


def test_racing_repeats_make_one_job(rig: Rig) -> None:
    results: list[Submission] = []
    elements = [rig.element(SLEEP, via) for via in ("local", "ssh") * 3]
    threads = [
        threading.Thread(target=lambda element=element: results.append(element.submit(batch("race", 1, 2, 3))))
        for element in elements
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 6
    assert len({tuple(sorted(result.handles.items())) for result in results}) == 1
    assert sorted(len(result.adopted) for result in results) == [0, 3, 3, 3, 3, 3]
    assert sorted(rig.jobs("race")) == ["0", "1", "2"]


def test_a_submitter_killed_at_any_moment_leaves_exactly_one_of_each_pilot(rig: Rig) -> None:
    """kill -9 at growing delays through the whole submission, tools and all; the repeat adopts or submits."""
    for number, delay_s in enumerate((0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1)):
        element = rig.element(SLEEP, "local")
        pid = os.fork()
        if pid == 0:
            try:
                element.submit(batch(f"kill{number}", 1, 2))
            finally:
                os._exit(0)
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        rig.element(SLEEP, "ssh").submit(batch(f"kill{number}", 1, 2))
        assert sorted(rig.jobs(f"kill{number}")) == ["0", "1"]


@pytest.mark.parametrize("step", ["before", "after"])
def test_an_answer_that_is_lost_after_the_request_was_sent_is_adopted(rig: Rig, step: str) -> None:
    """The connection breaks while sbatch works: before the job is in, and after."""
    tag = f"lost-{step}"
    mark = rig.site.node.path(Path("/tmp") / tag)
    script = {"before": f'touch /tmp/{tag}; sleep 3; real "$@"', "after": f'real "$@"; touch /tmp/{tag}; sleep 3'}
    with relay(rig) as proxy, rig.replaced("sbatch", script[step]):
        element = rig.element(SLEEP, "ssh", port=proxy.port)
        breaker = threading.Thread(target=lambda: (until(mark.exists), proxy.reset()))
        breaker.start()
        with pytest.raises(SubmitUncertainError):
            element.submit(batch(tag, 1, 2))
        breaker.join(60)
        again = rig.element(SLEEP, "ssh").submit(batch(tag, 1, 2))
    assert again.adopted == {1, 2}
    assert set(rig.element(SLEEP, "local").find(tag)) == set(again.handles.values())
    assert sorted(rig.jobs(tag)) == ["0", "1"]


def test_a_request_that_is_cut_on_its_way_submits_nothing(rig: Rig) -> None:
    """Half of the files are no batch: the remote side must not submit what it got."""
    with relay(rig) as proxy:
        element = rig.element(SLEEP + "# " + os.urandom(2_000_000).hex(), "ssh", port=proxy.port)
        element.find("x")
        proxy.limit(1_000_000)
        with pytest.raises(SubmitUncertainError):
            element.submit(batch("cut", 1, 2))
    time.sleep(0.3)
    assert rig.element(SLEEP, "ssh").find("cut") == {}
    assert rig.jobs("cut") == []
    assert not rig.path("cut").exists()


# --- answers that cannot be believed -------------------------------------------------------------------------


def test_warnings_around_the_list_say_nothing(rig: Rig) -> None:
    element = rig.element(SLEEP, "ssh")
    handles = list(element.submit(batch("warn", 1, 2)).handles.values())
    noise = 'echo "squeue: warning: 5|0|COMPLETED"; echo "CLUSTER: other"; echo; real "$@"; echo "bye|1|RUNNING|x"'
    with rig.replaced("squeue", noise):
        seen = element.status(handles)
    assert set(seen) == set(handles)
    assert all(status.state in (PilotJobState.QUEUED, PilotJobState.RUNNING) for status in seen.values())


def test_the_jobs_of_another_cluster_are_not_ours(rig: Rig) -> None:
    """The same ids, but other names: neither their ends nor their absence end our pilots."""
    element = rig.element(SLEEP, "local")
    handle = element.submit(batch("mine2", 1)).handles[1]
    job = handle.split("_")[0]
    with rig.replaced("squeue", f'echo "{job}|0|COMPLETED|theirs|None"'):
        assert element.status([handle])[handle].state is PilotJobState.UNKNOWN
        assert element.submit(batch("mine2", 1)).adopted == {1}  # the record on disk outranks an empty queue
    with rig.replaced("squeue", "exit 0"):
        assert element.status([handle])[handle].state is PilotJobState.UNKNOWN
    assert rig.jobs("mine2") == ["0"]


def test_the_pilots_of_another_installation_are_not_ours(rig: Rig) -> None:
    """One account on one cluster, another directory, and a tag that begins with ours: not counted, found or ended."""
    theirs = rig.element(SLEEP, "ssh", directory="/home/pilot/another installation")
    their_handles = list(theirs.submit(batch("ap-1-1", 1, 2)).handles.values())
    ours = rig.element(SLEEP, "ssh", max_pilots=1)
    assert ours.find("ap-1") == {}
    (handle,) = ours.submit(batch("ap-1", 1)).handles.values()
    assert set(ours.find("ap-1")) == {handle}
    ours.cancel([handle])
    until(lambda: ours.status([handle])[handle].state.is_final)
    ours.purge([handle])
    assert not any(status.state.is_final for status in theirs.status(their_handles).values())
    assert sorted(rig.jobs("ap-1-1")) == ["0", "1"]


def test_a_list_that_fails_is_no_list(rig: Rig) -> None:
    element = rig.element(SLEEP, "local")
    handle = element.submit(batch("fail", 1)).handles[1]
    fails = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
    with rig.replaced("squeue", f'real "$@" | head -c 5; {fails}'):
        for call in (lambda: element.status([handle]), lambda: element.find("fail"), lambda: element.cancel([handle])):
            with pytest.raises(CEUnavailableError, match="Unable to contact"):
                call()
        with pytest.raises(CEUnavailableError, match="Unable to contact"):
            element.submit(batch("fail2", 1))
    assert rig.jobs("fail2") == []


def test_a_cancel_that_fails_is_an_error(rig: Rig) -> None:
    element = rig.element(SLEEP, "local")
    handle = element.submit(batch("nocancel", 1)).handles[1]
    fails = 'echo "scancel: error: Unable to contact slurm controller" >&2; exit 1'
    with rig.replaced("scancel", fails), pytest.raises(CEUnavailableError, match="Unable to contact"):
        element.cancel([handle])
    assert element.status([handle])[handle].state is not PilotJobState.CANCELLED


def test_three_thousand_handles_in_one_call(rig: Rig) -> None:
    handles = [Handle(f"{700000 + number}_{number % 7}@some-tag-{number}") for number in range(3000)]
    for via in ("local", "ssh"):
        seen = rig.element(SLEEP, via).status(handles)
        assert set(seen) == set(handles)
        assert {status.state for status in seen.values()} == {PilotJobState.UNKNOWN}


def test_what_slurm_has_forgotten_is_known_from_the_pilots_own_exit_code(rig: Rig) -> None:
    good, bad = rig.element("exit 0\n", "local"), rig.element("exit 9\n", "local")
    handles = [good.submit(batch("old", 1)).handles[1], bad.submit(batch("old2", 1)).handles[1]]
    until(lambda: all(status.exit_code is not None for status in good.status(handles).values()))
    with rig.replaced("squeue", "exit 0"):
        seen = good.status(handles)
        assert set(good.find("old")) == {handles[0]}
    assert [(seen[h].state, seen[h].exit_code) for h in handles] == [
        (PilotJobState.DONE, 0),
        (PilotJobState.FAILED, 9),
    ]


def test_a_restarted_controller_changes_nothing(rig: Rig) -> None:
    element = rig.element(SLEEP, "ssh")
    handles = list(element.submit(batch("restart", 1, 2)).handles.values())
    rig.slurm.stop("slurmctld")
    rig.slurm.start(["slurmctld"])
    assert set(element.find("restart")) == set(handles)
    assert element.submit(batch("restart", 1, 2)).adopted == {1, 2}
