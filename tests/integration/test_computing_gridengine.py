"""The contract of ``ComputingElement`` over a real Grid Engine, as far as it differs from Slurm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.batch_rig import DIRECTORY
from support.elements import SLEEP, batch, queue_of, states, tells_how_pilots_ended, tells_unknown_from_failure, until
from support.gridengine import GridEngineHost, running_gridengine

from airpanda.computing.batch import BatchElement, make_batch_element
from airpanda.computing.elements import CEUnavailableError, Handle, InvalidDescriptionError, Outcome, PilotJobState

pytestmark = [pytest.mark.root, pytest.mark.integration]


@pytest.fixture(scope="module", name="host")
def module_host() -> Iterator[GridEngineHost]:
    with running_gridengine() as host:
        yield host


@pytest.fixture(autouse=True)
def tidy(host: GridEngineHost) -> Iterator[None]:
    yield
    host.root("qdel", "-f", "-u", "pilot")


def element(host: GridEngineHost, wrapper: str, **more: object) -> BatchElement:
    ce = {"directory": DIRECTORY, "enter": host.enter_argv(), **more}
    return make_batch_element(queue_of("gridengine", ce), wrapper, None)


def test_what_qsub_refuses_is_invalid_and_leaves_nothing(host: GridEngineHost) -> None:
    for more in ({"partition": "nope"}, {"options": ["-l", "bogus=1"]}, {"options": ["--bogus"]}):
        refusing = element(host, SLEEP, **more)
        with pytest.raises(InvalidDescriptionError):
            refusing.submit(batch("refused", 1))
        assert refusing.find("refused") == {}


def test_unknown_handles_and_tags(host: GridEngineHost) -> None:
    tells_unknown_from_failure(element(host, SLEEP), Handle("999_0@never"))


def test_a_batch_runs_is_adopted_and_cancelled(host: GridEngineHost) -> None:
    made = element(host, SLEEP)
    first = made.submit(batch("1-a-tag-that-begins-with-a-digit", *range(20, 32)))
    assert not first.adopted
    handles = list(first.handles.values())
    again = element(host, SLEEP).submit(batch("1-a-tag-that-begins-with-a-digit", *range(20, 32)))
    assert again.handles == first.handles
    assert len(again.adopted) == 12
    wanted = {PilotJobState.RUNNING, PilotJobState.QUEUED}  # 8 slots
    until(lambda: states(made.status(handles)) == wanted)
    assert set(made.find("1-a-tag-that-begins-with-a-digit")) == set(handles)
    assert set(made.cancel(handles).values()) == {Outcome.ACCEPTED}
    until(lambda: states(made.status(handles)) == {PilotJobState.CANCELLED})
    assert set(made.cancel(handles).values()) == {Outcome.ALREADY_OVER}


def test_exit_codes_logs_and_a_repeat_after_the_end(host: GridEngineHost) -> None:
    bad, _, failed = tells_how_pilots_ended(lambda wrapper: element(host, wrapper))
    until(lambda: host.root("qstat", "-u", "pilot") == "")
    assert bad.submit(batch("bad", 2)).adopted == {2}  # the queue has forgotten it, the record has not
    assert set(bad.find("bad")) == {failed}
    assert bad.purge([failed]) == {failed: Outcome.ACCEPTED}


def test_a_thousand_pilots_are_one_job(host: GridEngineHost) -> None:
    made = element(host, SLEEP)
    handles = list(made.submit(batch("big", *range(1000))).handles.values())
    assert len(made.find("big")) == 1000
    assert set(made.cancel(handles).values()) == {Outcome.ACCEPTED}


def test_a_list_that_fails_is_no_list(host: GridEngineHost) -> None:
    cut_off = [*host.enter_argv()[:-2], "SGE_QMASTER_PORT=1", "HOME=/home/pilot"]
    with pytest.raises(CEUnavailableError):
        element(host, SLEEP, enter=cut_off).submit(batch("none", 1))
