"""The contract of ``ComputingElement`` over a real ARC CE."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.arc_rig import ArcRig, make_arc_rig
from support.elements import (
    SLEEP,
    await_state,
    batch,
    log,
    purges_what_ended,
    refuses_handles_of_another_kind,
    refuses_other_pilots,
    runs_is_found_and_adopted,
    states,
    tells_how_pilots_ended,
    tells_unknown_from_failure,
    until,
)
from support.launcher import PILOT_UID

from airpanda.computing.elements import (
    BringsCredential,
    CECredentialError,
    Handle,
    InvalidDescriptionError,
    ListsTags,
    Outcome,
    PilotJobState,
    Renewable,
    ReportsLoad,
    ThrottledError,
)

pytestmark = [pytest.mark.root, pytest.mark.integration]
UNKNOWN = Handle("nosuchjob")


@pytest.fixture(scope="module", name="rig")
def module_rig() -> Iterator[ArcRig]:
    yield from make_arc_rig()


@pytest.fixture(autouse=True)
def tidy(rig: ArcRig) -> Iterator[None]:
    yield
    rig.tidy()


def test_a_handle_of_another_kind_is_refused_before_it_travels(rig: ArcRig) -> None:
    element = rig.element(SLEEP)
    handles = ("../../delegations", "x/y", "a b", "a\n", "", "x?action=clean", "%2e%2e")
    refuses_handles_of_another_kind(element, handles)
    assert element.requests == 0


def test_unknown_handles_and_tags_are_told_apart_from_failures(rig: ArcRig) -> None:
    tells_unknown_from_failure(rig.element(SLEEP), UNKNOWN)


def test_three_thousand_handles_are_one_request(rig: ArcRig) -> None:
    element = rig.element(SLEEP)
    seen = element.status([Handle(f"nosuchjob{number}") for number in range(3000)])
    assert len(seen) == 3000
    assert states(seen) == {PilotJobState.UNKNOWN}
    assert element.requests == 1


def test_the_pilots_of_another_installation_are_not_ours(rig: ArcRig) -> None:
    """One robot at one CE, and a tag that begins with ours: not found under it, not adopted, not ended."""
    (theirs,) = rig.element(SLEEP).submit(batch("other-1-1", 1)).handles.values()
    element = rig.element(SLEEP)
    assert element.find("other-1") == {}
    submission = element.submit(batch("other-1", 1))
    assert not submission.adopted
    assert set(element.find("other-1")) == set(submission.handles.values())
    assert "other-2-1" not in element.tagged("other-1-")
    assert element.tagged("other-1-") == {"other-1-1": [theirs]}
    element.cancel(list(submission.handles.values()))
    assert not element.status([theirs])[theirs].state.is_final


def test_a_batch_runs_is_found_and_a_repeat_adopts(rig: ArcRig) -> None:
    element, handles = runs_is_found_and_adopted(lambda: rig.element(SLEEP), "a", "a-", "A")
    assert rig.jobs("a") == 3
    assert isinstance(element, ListsTags)
    tagged = rig.element(SLEEP).tagged("a")
    assert set(tagged) == {"a", "a-"}
    assert set(tagged["a"]) == handles
    refuses_other_pilots(element, "a")


def test_exit_codes_become_states_and_logs_can_be_read(rig: ArcRig) -> None:
    element, done, _ = tells_how_pilots_ended(rig.element)
    assert element.fetch(done) == b""


def test_cancel_ends_what_runs_and_what_waits_and_a_repeat_is_no_error(rig: ArcRig) -> None:
    element = rig.element("echo $PPID; sleep 87.5 & wait $!\n")
    handles = list(element.submit(batch("c", 1, 2, 3)).handles.values())
    until(lambda: any(s.state is PilotJobState.RUNNING for s in element.status(handles).values()))
    assert set(element.cancel(handles).values()) == {Outcome.ACCEPTED}
    until(lambda: states(rig.element(SLEEP).status(handles)) == {PilotJobState.CANCELLED})
    assert set(element.cancel(handles).values()) == {Outcome.ALREADY_OVER}


def test_a_pilot_whose_batch_job_was_killed_ends(rig: ArcRig) -> None:
    """The fork back-end kills the submission's shell and not the job: a pilot ends at the latest with its directory."""
    element = rig.element("echo $$; trap 'exit 0' TERM; while :; do sleep 0.2; done\n")
    handle = element.submit(batch("o", 1)).handles[1]
    until(lambda: log(element, handle) != b"")
    pilot = rig.arc.node.path(Path("/proc", log(element, handle).decode().strip()))
    assert pilot.exists()
    element.cancel([handle])
    await_state(element, handle, PilotJobState.CANCELLED)
    element.purge([handle])
    until(lambda: not pilot.exists())


def test_purge_keeps_what_runs_and_removes_what_ended(rig: ArcRig) -> None:
    element = rig.element("exit 0\n")
    first = element.submit(batch("p", 1)).handles[1]
    running = rig.element(SLEEP).submit(batch("p2", 1)).handles[1]
    await_state(element, first, PilotJobState.DONE)
    purges_what_ended(element, [first], running)
    until(lambda: not rig.session(first).exists())
    assert element.status([first])[first].state is PilotJobState.UNKNOWN
    assert element.status([running])[running].state is not PilotJobState.UNKNOWN
    assert element.purge([first]) == {first: Outcome.NOT_FOUND}


def test_modes_secrets_and_what_a_pilot_sees(rig: ArcRig) -> None:
    element = rig.element("cat /proc/self/environ pilot.json; id -u; stat -c %a . pilot.json $HOME; " + SLEEP)
    handle = element.submit(batch("s", 1)).handles[1]
    until(lambda: log(element, handle).count(b"\n") >= 4)
    shown = log(element, handle)
    assert f"\n{PILOT_UID}\n".encode() in b"\n" + shown.replace(b"}", b"}\n")
    assert b"token-of-1" not in shown
    assert b"X509_USER_PROXY" not in shown
    assert b'"proxy": "/run/arc/control/job.' in shown
    assert rig.session(handle).stat().st_mode & 0o777 == 0o711
    assert (rig.session(handle) / "pilot").stat().st_mode & 0o777 == 0o700
    assert (rig.session(handle) / "pilot" / "pilot.json").stat().st_mode & 0o777 == 0o600
    everything = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, check=True).stdout
    for path in (*rig.arc.path("control").rglob("*"), *rig.arc.path("log").iterdir(), *rig.session(handle).rglob("*")):
        if path.is_file():
            everything += path.read_bytes()
    assert b"token-of-1" not in everything
    element.cancel([handle])


def test_more_than_max_pilots_is_throttled_and_starts_nothing(rig: ArcRig) -> None:
    before = rig.element(SLEEP).load()
    small = rig.element(SLEEP, max_pilots=before.queued + before.running + 3)
    small.submit(batch("m", 1, 2))
    with pytest.raises(ThrottledError, match=r"pilots are there and 200 more.*max_pilots") as caught:
        small.submit(batch("m2", *range(200)))
    assert caught.value.retry_after_s
    assert small.find("m2") == {}
    assert isinstance(small, ReportsLoad)
    assert small.load().queued + small.load().running >= 2


def test_a_queue_that_the_ce_does_not_have_is_refused_for_good(rig: ArcRig) -> None:
    with pytest.raises(InvalidDescriptionError, match=r"took 0 pilots.*nosuch"):
        rig.element(SLEEP, queue="nosuch").submit(batch("q", 1, 2))
    rig.element(SLEEP, queue="fork").submit(batch("q", 1))


def test_a_thousand_pilots_are_one_request_and_one_look() -> None:
    for rig in make_arc_rig():
        rig.arc.stop("engine")  # a thousand jobs would keep it busy for long; the front end takes them without
        submit_a_thousand(rig)


def submit_a_thousand(rig: ArcRig) -> None:
    element = rig.element(SLEEP)
    element.submit(batch("warm", 1))
    before = element.requests
    handles = list(element.submit(batch("big", *range(5000, 6000))).handles.values())
    assert element.requests - before <= 3
    assert len(set(handles)) == 1000
    before = element.requests
    assert len(element.status(handles)) == 1000
    assert element.requests - before == 1
    assert set(rig.element(SLEEP).find("big")) == set(handles)
    assert set(element.cancel(handles).values()) == {Outcome.ACCEPTED}
    with pytest.raises(InvalidDescriptionError, match="limit"):
        element.submit(batch("too-many", *range(1001)))


def test_a_renewal_reaches_pilots_that_wait_and_tells_when_it_ends(rig: ArcRig) -> None:
    """A-REX 6.17: pilots that were handed to the batch system keep the proxy they have."""
    short = rig.site.proxy("pilot", hours=2)
    element = rig.element(
        'sed -n \'s/.*"proxy": "\\([^"]*\\).*/\\1/p\' pilot.json | xargs openssl x509 -noout -enddate -in; sleep 1\n',
        credential=short,
    )
    assert isinstance(element, Renewable)
    assert isinstance(element, BringsCredential)
    assert element.credential_ends() <= datetime.now(UTC) + timedelta(hours=2)
    rig.arc.stop("engine")
    handle = element.submit(batch("r", 1)).handles[1]
    ends = element.renew(rig.site.proxy("pilot", hours=20))
    rig.arc.start("engine")
    assert timedelta(hours=19) < ends - datetime.now(UTC) < timedelta(hours=21)
    await_state(element, handle, PilotJobState.DONE)
    said = element.fetch(handle).decode().strip().removeprefix("notAfter=")
    assert datetime.strptime(said, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC) == ends.replace(microsecond=0)
    with pytest.raises(InvalidDescriptionError, match="delegation_s"):
        rig.element(SLEEP, delegation_s=599).submit(batch("late", 1))
    with pytest.raises(CECredentialError, match="ends before a pilot"):
        rig.element(SLEEP, credential=rig.site.proxy("pilot", hours=0.1)).submit(batch("late", 1))
