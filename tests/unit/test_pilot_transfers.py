"""Transfers as values: what goes where, what is tried again, whose fault an end is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_dispatcher import make_job

from airpanda.pilot import wire
from airpanda.pilot.carrier import outcome as o
from airpanda.pilot.errors import JobFault
from airpanda.pilot.transfers import plan, verdict
from airpanda.pilot.transfers.plan import Transfer
from airpanda.pilot.transfers.verdict import Outcome

GOOD = {"lfn": "a", "size": 3, "adler32": "024d0127", "sha256": "ab" * 32}


def job_with(**spec: Any) -> wire.Job:
    reply = {"jobs": [json.loads(make_job(7, attempt_nr=2, **spec).model_dump_json())], "wait_s": 0}
    return wire.read_acquire_reply(reply).jobs[0]


def transfer(lfn: str = "a", direction: str = "in", url: str = "file:///d/a?key=canary") -> Transfer:
    return Transfer(lfn, direction, url, ".part")


# --- plan ---


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({"scripts": {"a": "x"}, "inputs": [{"lfn": "a", "source": "file:///a"}]}, 1338, "a is put into the sandbox"),
        ({"inputs": [{"lfn": "a", "source": "file:///a"}, {"lfn": "a", "source": "panda:1/a"}]}, 1338, "a is put"),
        (
            {"outputs": [{"lfn": "a", "destination": "file:///d/b"}, {"lfn": "b", "destination": "file:///d/"}]},
            1383,
            "two outputs have one destination, file:///d/b",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused_before_anything_is(spec: dict[str, Any], code: int, words: str) -> None:
    job = job_with(**spec)
    with pytest.raises(JobFault) as refused:
        plan.check(job, switches=True)
    assert refused.value.kind.code == code
    assert words in refused.value.to_wire()["diag"]
    assert "canary" not in str(refused.value)


def test_a_scheme_of_a_newer_dispatcher_is_refused_without_showing_what_is_secret() -> None:
    job = job_with()
    spec = dataclasses.replace(job.spec, inputs=(wire.Input("a", "s3://se.example/a?signature=canary"),))
    with pytest.raises(JobFault, match=r"a: s3://se\.example/a$") as refused:
        plan.check(dataclasses.replace(job, spec=spec), switches=True)
    assert (refused.value.kind.code, refused.value.kind.blame) == (1313, "site")


@pytest.mark.parametrize(
    "spec",
    [{"inputs": [{"lfn": "a", "source": "file:///a"}]}, {"outputs": [{"lfn": "a", "destination": "file:///d/"}]}],
    ids=["input", "output"],
)
def test_without_a_switch_no_file_of_the_node_is_opened(spec: dict[str, Any]) -> None:
    plan.check(job_with(**spec), switches=True)
    with pytest.raises(JobFault, match="choose a queue with a switch") as refused:
        plan.check(job_with(**spec), switches=False)
    assert (refused.value.kind.code, refused.value.kind.blame) == (1338, "user")


def test_every_file_has_its_place_and_a_name_of_its_own_while_it_is_not_whole() -> None:
    job = job_with(
        inputs=[
            {"lfn": "here", "source": "panda:1/x"},
            {"lfn": "a", "source": "file:///d/a", "size": 3, "adler32": "024d0127"},
        ],
        outputs=[
            {"lfn": "kept"},
            {"lfn": "b", "destination": "file:///d/"},
            {"lfn": "c", "destination": "file:///d/other"},
        ],
    )
    (a,) = plan.inputs_elsewhere(job)
    assert a == Transfer("a", "in", "file:///d/a", ".airpanda-7-2-1.part", 3, "024d0127")
    b, c = plan.outputs_elsewhere(job)
    assert (b.url, c.url) == ("file:///d/b", "file:///d/other")
    assert b.temporary == ".airpanda-7-2-1.part" != c.temporary
    assert (plan.inputs_here(job), plan.outputs_here(job)) == (["here"], ["kept"])
    assert wire.LFN.fullmatch(a.temporary) is None, "no file of a job can have such a name"


# --- verdict ---


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), lambda s: st.lists(s)).map(json.dumps))
def test_whatever_the_carrier_says_each_transfer_has_one_outcome(text: str) -> None:
    said = verdict.read_outcomes(text, [transfer("a"), transfer("b")], "it ended with 9")
    assert said == {lfn: Outcome(o.CRASHED, "it ended with 9") for lfn in ("a", "b")}


@pytest.mark.parametrize(
    "damage",
    [
        {"size": -1},
        {"size": "many"},
        {"adler32": "24d0127"},
        {"sha256": "AB" * 32},
        {"sha256": None},
        {"why": "broken"},
        {"why": "broken", "detail": "x", "retry_after_s": "soon"},
        {"lfn": ["a"]},
        {"lfn": "other"},
        {"size": float("inf")},
    ],
)
def test_words_that_make_no_sense_count_as_not_said(damage: dict[str, Any]) -> None:
    said = verdict.read_outcomes(json.dumps(GOOD | damage), [transfer()], "ended")
    assert said["a"] == Outcome(o.CRASHED, "ended")


@pytest.mark.parametrize(
    "line", [json.dumps(GOOD).replace('"size": 3', '"size": 1e999'), "[" * 100_000, '{"a":' * 100_000]
)
def test_a_line_that_json_itself_chokes_on_does_not_hide_the_others(line: str) -> None:
    said = verdict.read_outcomes(f"{line}\n{json.dumps(GOOD)}", [transfer()], "ended")
    assert said["a"] == Outcome("", "", None, 3, "024d0127", "ab" * 32)


def test_the_first_word_on_a_file_counts() -> None:
    text = "\n".join(json.dumps(each) for each in (GOOD, GOOD | {"size": 4}, {"lfn": "a", "why": "x", "detail": ""}))
    assert verdict.read_outcomes(text, [transfer()], "")["a"] == Outcome("", "", None, 3, "024d0127", "ab" * 32)


def test_an_unknown_reason_a_long_text_and_a_long_pause_are_bounded() -> None:
    line = {"lfn": "a", "why": "because", "detail": "\x1b[2J" + "x" * 9999, "retry_after_s": 1e9}
    said = verdict.read_outcomes(json.dumps(line), [transfer()], "")["a"]
    assert (said.why, said.retry_after_s, len(said.detail)) == (o.PROTOCOL, verdict.MAX_PAUSE_S, 600)
    assert "\x1b" not in said.detail


@pytest.mark.parametrize("why", sorted(o.REASONS))
def test_only_what_may_pass_is_tried_again_and_not_for_ever(why: str) -> None:
    tries = [Outcome(why, f"{number}") for number in range(verdict.TRIES)]
    passing = {o.BROKEN, o.TIMEOUT, o.CHANGED, o.MISMATCH, o.CRASHED}
    assert verdict.is_worth_repeating(tries[:1]) is (why in passing)
    assert verdict.is_worth_repeating(tries[:-1]) is (why in passing)
    assert verdict.is_worth_repeating(tries) is False


def test_content_that_is_wrong_in_the_same_way_twice_is_what_lies_there() -> None:
    tries = [Outcome(o.MISMATCH, "its size is 4, the declared one is 3")] * 2
    assert not verdict.is_worth_repeating(tries)
    assert verdict.fault_of(transfer(), tries).kind.blame == "user"
    differing = [tries[0], dataclasses.replace(tries[0], detail="its size is 5, the declared one is 3")]
    assert verdict.is_worth_repeating(differing)
    assert verdict.fault_of(transfer(), differing).kind.blame == "system"


def test_pauses_grow_up_to_a_limit_and_obey_the_other_end() -> None:
    broken = Outcome(o.BROKEN, "")
    assert [verdict.pause_s([broken] * n, 1.0) for n in (1, 2, 3, 9)] == [2.0, 4.0, 8.0, 60.0]
    assert verdict.pause_s([broken] * 3, 0.0) == 4.0
    assert verdict.pause_s([broken, Outcome(o.BROKEN, "", 7.0)], 0.5) == 7.0


@pytest.mark.parametrize(
    ("why", "into", "out"),
    [
        (o.MISSING, (1331, "user"), (1137, "user")),
        (o.REFUSED, (1338, "user"), (1383, "user")),
        (o.CREDENTIAL, (1338, "user"), (1383, "user")),
        (o.NOT_A_FILE, (1103, "user"), (1137, "user")),
        (o.TOO_LARGE, (1168, "user"), (1124, "user")),
        (o.NO_SPACE, (1098, "site"), (1333, "user")),
        (o.MISMATCH, (1171, "system"), (1172, "system")),
        (o.CHANGED, (1099, "user"), (1137, "system")),
        (o.BROKEN, (1099, "system"), (1137, "system")),
        (o.TIMEOUT, (1151, "system"), (1152, "system")),
        (o.UNTRUSTED, (1099, "site"), (1137, "site")),
        (o.UNSUPPORTED, (1313, "site"), (1313, "site")),
        (o.NO_OUTPUT, (1099, "system"), (1165, "user")),
        (o.CRASHED, (1099, "system"), (1137, "system")),
    ],
)
def test_each_reason_has_its_code_and_its_party(why: str, into: tuple[int, str], out: tuple[int, str]) -> None:
    for direction, expected in (("in", into), ("out", out)):
        fault = verdict.fault_of(transfer(direction=direction), [Outcome(why, "so it was")])
        assert (fault.kind.code, fault.kind.blame) == expected
        assert fault.to_wire()["diag"].split("a: file:///d/a: ")[1].startswith("so it was")


def test_a_fault_says_how_often_it_was_tried() -> None:
    assert str(verdict.fault_of(transfer(), [Outcome(o.BROKEN, "gone")] * 4)).endswith("gone (tried 4 times)")
