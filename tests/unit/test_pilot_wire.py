"""The pilot's plain messages against the dispatcher's validated ones: both ends held together."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from annotated_types import MaxLen
from support.fake_dispatcher import PASSPHRASE, make_job

from airpanda import messages as m
from airpanda.core.errors import ServiceError
from airpanda.core.text import clean
from airpanda.pilot import errors, wire
from airpanda.pilot.errors import JobFault, ranked


def acquired(**changes: Any) -> dict[str, Any]:
    reply = m.AcquireReply(jobs=[make_job(inputs=[{"lfn": "a", "source": "panda:1/a"}])], wait_s=1)
    value: dict[str, Any] = json.loads(reply.model_dump_json())
    value["jobs"][0].update(changes)
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"jobs": None, "wait_s": 1},
        {"jobs": [], "wait_s": "soon"},
        {"jobs": [{}], "wait_s": 1},
        acquired(token=None),
        acquired(panda_id="x"),
        acquired(lease_expires_at="2026-01-01T00:00:00"),
        acquired(spec={}),
    ],
)
def test_an_answer_that_is_none_is_a_failure_of_the_dispatcher(value: Any) -> None:
    with pytest.raises(ServiceError, match="not understood") as caught:
        wire.read_acquire_reply(value)
    assert not caught.value.transient
    assert PASSPHRASE not in repr(caught.value)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", ".hidden", "a/b", "a\nb", "x" * 300])
@pytest.mark.parametrize("where", ["scripts", "inputs", "outputs"])
def test_a_file_name_with_a_way_out_is_refused(name: str, where: str) -> None:
    value = acquired()
    value["jobs"][0]["spec"][where] = {name: "text"} if where == "scripts" else [{"lfn": name, "source": "panda:1/a"}]
    with pytest.raises(ServiceError, match="not understood"):
        wire.read_acquire_reply(value)


def test_a_job_is_read_and_shows_no_secret() -> None:
    (job,) = wire.read_acquire_reply(acquired(future_field=1)).jobs
    assert (job.panda_id, job.credential.address) == (7, ("localhost", 7512))
    assert job.spec.inputs == (wire.Input("a", "panda:1/a"),)
    assert job.credential.passphrase.reveal() == PASSPHRASE
    assert PASSPHRASE not in repr(job)
    assert "lease-7" not in repr(job)


def test_addresses_may_be_ipv6() -> None:
    value = acquired()
    value["jobs"][0]["credential"]["server"] = "[::1]:7512"
    (job,) = wire.read_acquire_reply(value).jobs
    assert job.credential.address == ("::1", 7512)


def test_reports_are_what_the_dispatcher_accepts() -> None:
    (job,) = wire.read_acquire_reply(acquired()).jobs
    bare = wire.Report(job, "running", "wn1")
    assert m.JobReport.model_validate(bare.to_wire()).model_fields_set == {
        "job_id",
        "attempt_nr",
        "token",
        "job_status",
        "node",
    }
    faults = ranked([JobFault(errors.PAYLOAD, "exit code 0", number=0), JobFault(errors.GLEXEC, "x\0y" * 5000)])
    sample = dict.fromkeys(m.Sample.model_fields, 0)
    stored = {"lfn": "a", "url": "https://se/a", "size": 0, "adler32": "0" * 8, "sha256": "0" * 64}
    launcher = {"fqans": ["/test"], "launcher": "socket", "mapping": "own"}
    use = {"wall_s": 0.0, "cpu_s": 0.0, "max_rss_mib": 0.0}
    full = wire.Report(job, "failed", "wn1", 0, "alice", 0, False, 0, faults, use, "refused", "tail")
    full.launcher, full.samples, full.stored, full.debug_output = launcher, [sample], [stored], "ps\0"
    report = m.JobReport.model_validate_json(json.dumps(full.to_wire()))
    assert (report.trans_exit_code, report.account_uid, report.identity_switched, report.pilot_uid) == (0, 0, False, 0)
    assert [error.code for error in report.errors] == [1226, 0]
    assert report.use == m.ResourceUse(**use)
    assert report.launcher == m.LauncherRecord(**launcher)
    assert (report.samples, report.stored) == ([m.Sample(**sample)], [m.StoredFile(**stored)])
    assert report.debug_output == "ps\ufffd"


def test_limits_of_reports_are_the_dispatchers() -> None:
    fields = m.JobReport.model_fields
    limits = {
        name: [each.max_length for each in field.metadata if isinstance(each, MaxLen)] for name, field in fields.items()
    }
    assert limits["samples"] == [wire.MAX_SAMPLES]
    assert limits["debug_output"] == [wire.MAX_DEBUG_CHARS]
    assert (wire.PAYLOAD_LOG, wire.PILOT_LOG) == m.LOGS
    assert get_args(m.DebugWhat) == wire.DEBUG


def test_files_elsewhere_are_read_whole() -> None:
    said = {"lfn": "a", "source": "https://se/a", "size": 3, "adler32": "0" * 8, "sha256": "0" * 64}
    reply = m.AcquireReply(
        jobs=[make_job(inputs=[said], outputs=[{"lfn": "b", "destination": "davs://se/b"}, {"lfn": "c"}])], wait_s=1
    )
    (job,) = wire.read_acquire_reply(json.loads(reply.model_dump_json())).jobs
    assert job.spec.inputs == (wire.Input(**said),)
    assert job.spec.outputs == (wire.Output("b", "davs://se/b"), wire.Output("c"))
    older = {"lfn": "a", "source": "panda:1/a"}
    value = acquired()
    value["jobs"][0]["spec"].update(inputs=[older], outputs=[{"lfn": "c"}])
    (job,) = wire.read_acquire_reply(value).jobs
    assert (job.spec.inputs, job.spec.outputs) == ((wire.Input("a", "panda:1/a"),), (wire.Output("c"),))


def test_a_reply_to_a_report_is_read() -> None:
    until = datetime.now(UTC)
    text = m.ReportReply(command="tobekilled", lease_expires_at=until, heartbeat_s=30, debug="ps").model_dump_json()
    assert wire.read_report_reply(json.loads(text)) == wire.ReportReply("tobekilled", until, 30.0, "ps")
    assert wire.read_report_reply(json.loads(text) | {"refused": "x" * 2000}).refused == "x" * 1000
    assert wire.read_report_reply(json.loads(text) | {"refused": None}).refused == "", "an older dispatcher's"
    unknown = json.loads(text) | {"debug": "gdb"}
    assert wire.read_report_reply(unknown).debug == "gdb", "a newer dispatcher's wish gets an answer, too"
    for value in (None, {}, {"command": "", "lease_expires_at": "x", "heartbeat_s": 1}):
        with pytest.raises(ServiceError):
            wire.read_report_reply(value)


def test_errors_are_ranked_named_once_and_say_who_must_act() -> None:
    faults = [JobFault(errors.STAGE_OUT, "b"), JobFault(errors.WALLTIME), JobFault(errors.STAGE_OUT, "b")]
    first, second = ranked(faults)
    assert (first["code"], second["code"]) == (1213, 1137)
    assert first["blame"] == "user"
    assert "the owner must act" in first["diag"]


def test_text_for_people_has_no_control_characters() -> None:
    assert clean("a\x1b[31m\0\r\nb\tc") == "a\ufffd[31m\ufffd\nb\tc"
