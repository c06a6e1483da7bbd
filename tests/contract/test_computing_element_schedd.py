"""The contract of ``ComputingElement`` over HTCondor's bindings and a stub of a schedd; over a real one, if named."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.condor_stub import BOOT, TOKEN
from support.elements import (
    SLEEP,
    Elements,
    batch,
    ends_pilots_of_one_batch_apart,
    purges_what_ended,
    queue_of,
    refuses_handles_of_another_kind,
    refuses_other_pilots,
    runs_is_found_and_adopted,
    states,
    tells_unknown_from_failure,
    until,
)
from support.need import absent

from airpanda.computing.ces import ScheddCE
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    Handle,
    InvalidDescriptionError,
    ListsTags,
    Outcome,
    PilotJobState,
    ReportsLoad,
    SubmitUncertainError,
    ThrottledError,
)
from airpanda.computing.queues import PandaQueue
from airpanda.computing.schedd import ScheddElement, describe
from airpanda.core.secret import Secret
from airpanda.pilot.config import PilotConfig

UNKNOWN = Handle("99.0@never")
Make = Callable[..., ScheddElement]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    if find_spec("htcondor2") is None:
        absent("NOT TESTED: HTCondor's bindings are missing; pip install -r requirements-htcondor.txt")
    directory = tmp_path / "schedd"
    directory.mkdir()
    yield directory
    jobs = directory / "jobs.json"
    for job in json.loads(jobs.read_text()) if jobs.exists() else []:
        with suppress(ProcessLookupError, KeyError):
            os.killpg(job["Pid"], signal.SIGKILL)


def queue(**ce: object) -> PandaQueue:
    return queue_of("schedd", {"collector": "ce.example.org:9619", "schedd": "ce.example.org", "conn_id": "c", **ce})


@pytest.fixture
def make(place: Path, tmp_path: Path) -> Make:
    elements = Elements(ScheddElement, tmp_path)

    def factory(wrapper: str, *, token: str = TOKEN, **ce: object) -> ScheddElement:
        element = elements.make(queue(**ce), wrapper, token=Secret(token))
        element._python = (sys.executable, "-I", "-c", BOOT, str(place))
        return element

    return factory


def test_a_handle_of_another_kind_is_refused_before_it_travels(make: Make) -> None:
    element = make(SLEEP)
    element._python = ("/nonexistent/python",)
    refuses_handles_of_another_kind(element, ("1@t", "1.x@t", '1.0@t" || true', "1.0@t\n", "gram_1@t", ""))


def test_unknown_handles_and_tags_are_told_apart_from_failures(make: Make) -> None:
    tells_unknown_from_failure(make(SLEEP), UNKNOWN)


def test_a_batch_runs_is_found_and_a_repeat_adopts(make: Make, place: Path) -> None:
    element, handles = runs_is_found_and_adopted(lambda: make(SLEEP), "a", "A")
    assert isinstance(element, ListsTags)
    assert set(element.tagged("a")["a"]) == handles
    assert isinstance(element, ReportsLoad)
    assert (element.load().queued, element.load().running) == (0, 4)
    refuses_other_pilots(element, "a")
    with pytest.raises(ThrottledError, match="max_pilots"):
        make(SLEEP, max_pilots=5).submit(batch("m", 1, 2))


def test_ends_become_states_and_purged_jobs_are_in_the_history(make: Make) -> None:
    element, handles = ends_pilots_of_one_batch_apart(make)
    purges_what_ended(element, [handles[1], handles[2]], handles[4])
    assert set(element.find("mixed")) == {handles[4]}
    assert element.status([handles[2]])[handles[2]].exit_code == 7
    assert element.cancel(list(handles.values())) == {
        handles[1]: Outcome.ALREADY_OVER,
        handles[2]: Outcome.ALREADY_OVER,
        handles[4]: Outcome.ACCEPTED,
    }
    assert element.status([handles[4]])[handles[4]].state is PilotJobState.CANCELLED


def test_each_job_gets_its_own_secret_and_nothing_shows_it(
    make: Make, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    element = make("cat /proc/self/environ pilot.json; stat -c %a pilot.json; " + SLEEP)
    element.submit(batch("s", 7, 8))
    logs = [place / f"1.{proc}" / "pilot.log" for proc in (0, 1)]
    until(lambda: all(log.exists() and log.read_bytes().endswith(b"}600\n") for log in logs))
    assert b"token-of-7" in logs[0].read_bytes()
    assert b"token-of-8" not in logs[0].read_bytes()
    shown = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, check=True).stdout
    assert b"token-of" not in shown + (place / "jobs.json").read_bytes()
    assert TOKEN.encode() not in shown
    assert list(private.rglob("*")) == []


def test_a_call_that_is_ended_in_time_leaves_no_secret(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = (
        "import sys, types, time, runpy; m = types.ModuleType('htcondor2'); m.param = {};"
        f"m.Collector = lambda _: open({str(tmp_path / 'reached')!r}, 'w') and time.sleep(60);"
        "m.HTCondorException = OSError; sys.modules['htcondor2'] = m;"
        "runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    element = make(SLEEP)
    element._python, element._timeout_s = (sys.executable, "-I", "-c", hangs), 8.0
    with pytest.raises(CEUnavailableError, match="did not answer"):
        element.find("t")
    assert (tmp_path / "reached").exists(), "the token was in place by then"
    assert list(private.iterdir()) == []


def test_a_pilot_makes_its_scratch_directory_in_its_sandbox(make: Make, place: Path) -> None:
    """Beside the sandbox is HTCondor's EXECUTE, where no pilot may."""
    make("pwd; cat pilot.json; echo; " + SLEEP).submit(batch("w", 7))
    sandbox = place / "1.0"
    log = sandbox / "pilot.log"
    until(lambda: log.exists() and log.read_text().count("\n") > 1)
    workdir, text = log.read_text().splitlines()
    assert PilotConfig.from_json(text, Path(workdir)).scratch.parent == sandbox
    assert [path.stat().st_mode & 0o777 for path in (sandbox, sandbox / "pilot")] == [0o711, 0o700]
    assert not (sandbox / "pilot.json").exists()


def test_files_that_never_came_are_sent_again_with_a_cluster_of_their_own(make: Make, place: Path) -> None:
    (place / "cut").write_text("Failed to spool: connection closed")
    with pytest.raises(SubmitUncertainError):
        make(SLEEP).submit(batch("half", 1, 2))
    (place / "cut").unlink()
    element = make(SLEEP)
    assert states(element.find("half")) == {PilotJobState.STAGING}
    submission = element.submit(batch("half", 1, 2))
    assert not submission.adopted
    assert states(element.status(list(submission.handles.values()))) == {PilotJobState.RUNNING}
    assert element.load().running == 2


def test_a_cluster_that_was_removed_as_empty_is_never_adopted(make: Make, place: Path) -> None:
    """It would stay in the queue as removed for two days, by our own leave_in_queue."""
    for file, said in (("cut", "Failed to spool: connection closed"), ("refuse", "Too many jobs: would exceed")):
        (place / file).write_text(said)
        with pytest.raises((SubmitUncertainError, ThrottledError)):
            make(SLEEP).submit(batch("half", 1, 2))
        (place / file).unlink()
    element = make(SLEEP)
    assert element.find("half") == {}
    submission = element.submit(batch("half", 1, 2))
    assert states(element.status(list(submission.handles.values()))) == {PilotJobState.RUNNING}


def test_a_cluster_that_the_schedd_removed_without_its_files_is_not_adopted(make: Make, place: Path) -> None:
    (place / "cut").write_text("Failed to spool: connection closed")
    with pytest.raises(SubmitUncertainError):
        make(SLEEP).submit(batch("half", 1))
    (place / "cut").unlink()
    element = make(SLEEP)
    element._call("remove", constraint="ClusterId == 1")
    assert states(element.find("half")) == {PilotJobState.CANCELLED}
    assert not element.submit(batch("half", 1)).adopted
    adopted = element.submit(batch("half", 1))
    assert adopted.adopted
    assert states(element.status(list(adopted.handles.values()))) == {PilotJobState.RUNNING}
    (handle,) = adopted.handles.values()
    element.cancel([handle])
    assert element.submit(batch("half", 1)).handles == {1: handle}, (
        "pilots that ran and were cancelled are not run again"
    )


@pytest.mark.parametrize(
    "said",
    [
        "DCSchedd::spoolJobFiles: Can't receive reply from schedd",
        "CEDAR:6002:failed to read",
        "Too many jobs: would exceed",
        "AUTHENTICATE:1004:Failed to authenticate",
    ],
)
def test_what_fails_after_the_cluster_is_committed_is_uncertain(make: Make, place: Path, said: str) -> None:
    """The jobs are in the queue, and run if only the reply to the spooled files was lost."""
    (place / "cut").write_text(said)
    with pytest.raises(SubmitUncertainError, match=re.escape(said)):
        make(SLEEP).submit(batch("half", 1))


def test_jobs_whose_files_never_come_do_not_stay_for_ever(place: Path) -> None:
    import classad2
    import htcondor2

    of_schedd = queue()
    assert isinstance(of_schedd.ce, ScheddCE)
    rule = classad2.ExprTree(htcondor2.Submit(describe(of_schedd, of_schedd.ce, "t", "1 a"))["periodic_remove"])
    now = int(time.time())
    for code, since, gone in ((16, now - 4000, True), (16, now - 3000, False), (1, now - 4000, False)):
        ad = {"JobStatus": 5, "HoldReasonCode": code, "EnteredCurrentStatus": since, "NumJobStarts": 0}
        assert rule.eval(classad2.ClassAd(ad)) is gone


def test_jobs_of_others_are_not_taken_for_pilots(make: Make, place: Path) -> None:
    """Anybody may submit a job with a tag that the queue shows to everybody."""
    element = make(SLEEP)
    (handle,) = element.submit(batch("t", 1)).handles.values()
    jobs = json.loads((place / "jobs.json").read_text())
    for number, identity in ((98, jobs[0]["AirpandaPilots"]), (99, "1 other")):
        ids = {"ClusterId": number, "ProcId": 0, "AirpandaTag": "t", "AirpandaPilots": identity, "Owner": "eve"}
        jobs.append({**ids, "JobStatus": 1})
    (place / "jobs.json").write_text(json.dumps(jobs))
    assert element.submit(batch("t", 1)).handles == {1: handle}
    assert set(element.find("t")) == {handle}
    assert element.tagged("t") == {"t": [handle]}
    assert element.load().queued == 0
    assert element.cancel([Handle("98.0@t")]) == {Handle("98.0@t"): Outcome.NOT_FOUND}


def test_a_few_jobs_of_a_large_cluster_are_found_in_the_history(make: Make, place: Path) -> None:
    """A schedd stops at the number of matches that it was told."""
    ids = {"ClusterId": 7, "AirpandaTag": "t", "AirpandaPilots": "x", "Owner": "pilot", "JobStatus": 4}
    (place / "gone.json").write_text(json.dumps([{**ids, "ProcId": proc, "ExitCode": proc} for proc in range(1000)]))
    wanted = [Handle(f"7.{proc}@t") for proc in (3, 4, 5, 500)]
    seen = make(SLEEP).status([*wanted, Handle("8.3@t")])
    assert [seen[handle].exit_code for handle in wanted] == [3, 4, 5, 500]
    assert seen[Handle("8.3@t")].state is PilotJobState.UNKNOWN


@pytest.mark.parametrize(
    ("file", "said", "kind"),
    [
        ("refuse", "Number of submitted jobs would exceed MAX_JOBS_SUBMITTED", ThrottledError),
        ("refuse", "Parse error in expression", InvalidDescriptionError),
        ("refuse", "Failed to commit and disconnect from queue", SubmitUncertainError),
        ("down", "Failed to connect to schedd", CEUnavailableError),
    ],
)
def test_refusals_say_who_must_act(make: Make, place: Path, file: str, said: str, kind: type[Exception]) -> None:
    (place / file).write_text(said)
    with pytest.raises(kind, match=said):
        make(SLEEP).submit(batch("r", 1))


def test_what_the_real_bindings_and_their_process_can_do_wrong(make: Make, tmp_path: Path) -> None:
    with pytest.raises(CECredentialError, match="authenticate"):
        make(SLEEP, token="wrong").find("t")
    real = make(SLEEP, collector="127.0.0.1:1")
    real._python = (sys.executable, "-I")
    with pytest.raises(CEUnavailableError, match="collector"):
        real.find("t")
    slow = make(SLEEP)
    slow._python, slow._timeout_s = ("/bin/sh", "-c", "sleep 60"), 0.5
    with pytest.raises(CEUnavailableError, match="did not answer"):
        slow.find("t")
    crash = make(SLEEP)
    crash._python = ("/bin/sh", "-c", "cat >/dev/null; kill -SEGV $$")
    with pytest.raises(CEUnavailableError, match="ended with -11"):
        crash.find("t")
    bare = make(SLEEP)
    bare._python = (sys.executable, "-I", "-S")
    with pytest.raises(CEUnavailableError, match=r"requirements-htcondor\.txt"):
        bare.find("t")


def test_the_real_bindings_read_the_description_as_it_is_meant(place: Path) -> None:
    import htcondor2

    of_schedd = queue(options=["accounting_group = group_atlas", "getenv = True"])
    assert isinstance(of_schedd.ce, ScheddCE)
    submit = htcondor2.Submit(describe(of_schedd, of_schedd.ce, "ap-1", "3 abc"))
    assert submit["getenv"] == "False"
    assert submit["accounting_group"] == "group_atlas"
    assert submit["My.AirpandaTag"] == '"ap-1"'
    assert submit.expand("transfer_input_files") == "wrapper.sh, 0/pilot.json"
    assert submit["request_memory"] == "1000MB"


@pytest.mark.integration
def test_a_real_schedd(tmp_path: Path) -> None:
    """A batch runs, is found, adopted and ends, at the schedd that the token in AIRPANDA_CONDOR_TOKEN_FILE is for."""
    if not (os.environ.get("CONDOR_HOST") and os.environ.get("AIRPANDA_CONDOR_TOKEN_FILE")):
        pytest.skip("NOT TESTED: CONDOR_HOST names no pool, or AIRPANDA_CONDOR_TOKEN_FILE no file with a token for it")
    token = Path(os.environ["AIRPANDA_CONDOR_TOKEN_FILE"]).read_text().strip()
    ce = {"collector": os.environ["CONDOR_HOST"], "schedd": os.environ.get("AIRPANDA_CONDOR_SCHEDD", "")}
    element = Elements(ScheddElement, tmp_path).make(queue(**ce), "exit 7\n", token=Secret(token))
    pilots = batch(f"ap-test-{os.getpid()}", 1, 2)
    handles = list(element.submit(pilots).handles.values())
    assert element.submit(pilots).adopted == {1, 2}
    assert set(element.find(pilots.tag)) == set(handles)
    end = time.monotonic() + 240
    while not all(status.state.is_final for status in element.status(handles).values()):
        assert time.monotonic() < end, element.status(handles)
        time.sleep(5)
    assert {status.exit_code for status in element.status(handles).values()} == {7}
    element.purge(handles)
