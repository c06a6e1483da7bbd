"""What the messages refuse, before anything is stored."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from airpanda import messages as m

SPEC: dict[str, Any] = {"job_name": "j", "argv": ["true"]}


@pytest.mark.parametrize(
    "source",
    [
        "",
        "panda:1",
        "panda:x/a",
        "panda:1/../a",
        "https://",
        "https://user:password@se.example/a",
        "http://se.example/a",
        "https://se.example/a b",
        "https://se.example/a\nb",
        "file://host/etc/passwd",
        "file:relative",
        "gsiftp://se.example/a",
        "HTTPS://se.example/a",
        "https://se.example/" + "a" * 5000,
    ],
)
def test_a_source_is_a_known_kind_of_place(source: str) -> None:
    with pytest.raises(ValidationError):
        m.InputFile(lfn="a", source=source)
    with pytest.raises(ValidationError):
        m.OutputFile(lfn="a", destination=source)


@pytest.mark.parametrize(
    "source", ["https://se.example:443/a?b=c", "davs://[::1]:8443/a", "root://se//eos/a", "file:///data/a"]
)
def test_places_outside(source: str) -> None:
    assert m.InputFile(lfn="a", source=source, size=0, adler32="00000001").source == source
    assert m.OutputFile(lfn="a", destination=source).destination == source


def test_an_output_may_not_go_into_another_jobs_files() -> None:
    assert m.InputFile(lfn="a", source="panda:1/a")
    with pytest.raises(ValidationError):
        m.OutputFile(lfn="a", destination="panda:1/a")


@pytest.mark.parametrize("name", m.LOGS)
def test_a_log_is_no_output(name: str) -> None:
    with pytest.raises(ValidationError, match="name of a log"):
        m.JobSpec(**SPEC, outputs=[{"lfn": name}])


@pytest.mark.parametrize("change", [{"adler32": "1"}, {"adler32": "0000000G"}, {"sha256": "0" * 63}, {"size": -1}])
def test_checksums_and_sizes_have_their_form(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        m.InputFile(lfn="a", source="panda:1/a", **change)


@pytest.mark.parametrize(
    "change",
    [{"at_s": -1.0}, {"cpu_s": float("inf")}, {"rss_mib": float("nan")}, {"processes": 1.5}, {"processes": 2**31}],
)
def test_a_sample_is_made_of_measures(change: dict[str, Any]) -> None:
    good = dict.fromkeys(m.Sample.model_fields, 0)
    assert m.Sample(**good)
    with pytest.raises(ValidationError):
        m.Sample(**good | change)


@pytest.mark.parametrize("features", [["a b"], [""], ["x"] * 65, "cvmfs"])
def test_features_are_names(features: Any) -> None:
    with pytest.raises(ValidationError):
        m.JobSpec(**SPEC, features=features)


def test_shared_scripts_are_bounded_together() -> None:
    ti = {"dag_id": "d", "run_id": "r", "task_id": "t"}
    whole = {
        "task_key": "k",
        "task_name": "t",
        "owner": "o",
        "credential_id": 1,
        "queue": "Q",
        "ti": ti,
        "jobs": [SPEC],
    }
    assert m.JobSubmission(**whole, scripts={"a.sh": "x" * 1000})
    with pytest.raises(ValidationError, match="together"):
        m.JobSubmission(**whole, scripts={f"s{n}": "x" * 250_000 for n in range(5)})


STORED = b'{"stored":[' + b",".join([b"{}"] * 1000) + b"]}"
ARGV = b'{"argv":[' + b",".join([b"1"] * 1000) + b"]}"


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (m.BulkReport, b'{"job_list":[' + b",".join([STORED] * 20) + b"]}"),
        (m.BulkReport, b'{"job_list":[' + b",".join([b"0"] * 100_000) + b"]}"),
        (m.JobReport, STORED),
        (m.JobSubmission, b'{"jobs":[' + b",".join([ARGV] * 20) + b"]}"),
        (m.JobSubmission, b'{"queue":[' + b",".join([b"0"] * 1000) + b"]}"),
        (m.PilotOffer, b'{"avoid_owners":[' + b",".join([b"0"] * 1000) + b"]}"),
    ],
)
def test_a_list_costs_few_errors(message: type, body: bytes) -> None:
    """Each is some hundred bytes of memory, and more to tell, for two bytes of the body."""
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(message).validate_json(body)
    assert refused.value.error_count() < 50
