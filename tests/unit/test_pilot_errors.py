"""The table of the pilot's errors, and how the errors of one job become a report."""

from __future__ import annotations

import pytest

from airpanda import messages as m
from airpanda.__main__ import main
from airpanda.core.identity import Account
from airpanda.glexec.ports import PayloadOutcome
from airpanda.pilot import errors
from airpanda.pilot.command import payload_faults
from airpanda.pilot.errors import JobFault, kinds, ranked
from airpanda.pilot.wire import Spec

# Source: PanDA pilot3, common/errorcodes.py.
PANDA = {
    1098, 1099, 1100, 1103, 1104, 1106, 1110, 1124, 1137, 1144, 1150, 1151, 1152, 1163, 1165, 1168, 1171, 1172, 1177,
    1186, 1200, 1201, 1202, 1203, 1204, 1205, 1206, 1207, 1208, 1212, 1213, 1220, 1226, 1235, 1236, 1301, 1305, 1310,
    1313, 1318, 1319, 1328, 1331, 1333, 1338, 1364, 1367, 1370, 1373, 1376, 1382, 1383,
}  # fmt: skip
PARTY = {"user": "the owner", "site": "the site", "system": "the operator"}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: f"{kind.code}-{kind.blame}-{kind.rank}")
def test_each_kind_has_pandas_code_a_sentence_and_one_who_acts(kind: errors.Kind) -> None:
    assert kind.code in PANDA or kind is errors.PAYLOAD
    assert PARTY[kind.blame] == kind.acts
    assert len(kind.sentence) > 10
    assert not kind.sentence.endswith(".")
    wire = m.JobError.model_validate(JobFault(kind, "x").to_wire())
    assert wire.diag == f"{kind.sentence}: x; {kind.acts} must act"


def test_no_two_kinds_look_the_same() -> None:
    shown = [(kind.code, kind.sentence, kind.acts) for kind in kinds()]
    assert len(set(shown)) == len(shown) > 40


def test_what_ended_the_payload_comes_before_what_followed() -> None:
    """Who killed it, then why it has not run, then its limits, then itself, then its outputs, then the pilot."""
    order = [errors.KILLED, errors.LEASE_LOST, errors.SIG_TERM, errors.GLEXEC, errors.NO_PROXY, errors.STAGE_IN]
    order += [errors.MEMORY, errors.WALLTIME, errors.LOOPING, errors.PAYLOAD, errors.OUTPUT_MISSING, errors.STAGE_OUT]
    order += [errors.PILOT_ERROR]
    faults = [JobFault(kind) for kind in reversed(order)]
    assert [error["diag"] for error in ranked(faults)] == [f"{kind.sentence}; {kind.acts} must act" for kind in order]


def test_all_of_many_are_told_once_each_and_within_what_a_report_may_hold() -> None:
    faults = [JobFault(errors.OUTPUT_MISSING, f"file {i % 150}") for i in range(1000)]
    told = ranked([JobFault(errors.PILOT_ERROR), *faults, JobFault(errors.MEMORY, "\x1b[2J" + "x" * 10**5)])
    assert len(told) == 100
    assert told[0]["code"] == 1212
    assert len({error["diag"] for error in told}) == 100
    report = {"job_id": 1, "attempt_nr": 1, "token": "t", "job_status": "failed", "errors": told}
    assert "\x1b" not in m.JobReport.model_validate(report).errors[0].diag


def outcome(code: int, signal: int | None = None, rss_mib: int = 0) -> PayloadOutcome:
    return PayloadOutcome(code, signal, 1.0, 1.0, 1024 * rss_mib, Account("a", 1, (1,)), True)


SPEC = Spec(("true",), {}, {}, (), (), 60, 1000, 10)


def test_a_payload_that_the_kernel_has_killed_for_its_memory_learns_both() -> None:
    both = ranked(payload_faults(outcome(137, 9, 1500), SPEC, None))
    assert [(error["source"], error["code"]) for error in both] == [("pilot", 1212), ("exe", 137)]
    for other in (outcome(137, 9, 900), outcome(139, 11, 1500), outcome(3, None, 1500)):
        (fault,) = payload_faults(other, SPEC, None)
        assert (fault.kind, fault.number) == (errors.PAYLOAD, other.exit_code)


def test_a_payload_whose_launcher_was_lost_is_no_failure_of_its_owner() -> None:
    lost = PayloadOutcome(137, 9, 1.0, 1.0, 1500 * 1024, Account("a", 1, (1,)), True, "the launcher was killed")
    (error,) = ranked(payload_faults(lost, SPEC, None))
    assert (error["source"], error["code"], error["blame"]) == ("pilot", 1226, "site")
    assert "the launcher was killed" in error["diag"]
    assert "has not run" not in error["diag"]


def test_people_can_read_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pilot", "errors"]) == 0
    text = capsys.readouterr().out
    assert "| 1226 | the identity switch failed; the payload has not run | site | the site | the job goes back" in text
    assert "| the payload's | the payload failed | user | the owner |  |" in text
    exits = [value for name, value in vars(errors).items() if name.startswith("EXIT_")]
    assert set(exits) <= set(errors.EXITS)
    for code in exits:
        assert f"\n| {code} | " in text
