"""What goes to a submit host and what comes back, without one."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.computing import remote
from airpanda.computing.batch import BatchElement, make_batch_element
from airpanda.computing.ces import BatchCE
from airpanda.computing.dialects.slurm import Slurm
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    Handle,
    InvalidDescriptionError,
    PilotBatch,
    PilotJobState,
    SubmitUncertainError,
)
from airpanda.computing.queues import PandaQueue, PilotStart, Slot, parse_queue
from airpanda.computing.transports import AnswerLostError, Completed
from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret

TEXT = """
[queue]
name = "T"
[ce]
kind = "slurm"
directory = "/shared/pilots"
{more}
[pilot]
code = "/opt/airpanda"
dispatcher_url = "https://panda.example.org"
ca_dir = "/ca"
proxy = "/proxy"
"""


def queue(**ce: object) -> PandaQueue:
    values: dict[str, object] = {"kind": "slurm", "directory": "/shared/pilots", **ce}
    start = PilotStart("/opt/airpanda", "https://panda.example.org", "/ca", "/proxy")
    return PandaQueue("T", BatchCE(**values), start, Slot())  # type: ignore[arg-type]


class Scripted:
    """A transport that answers once with what it was given."""

    def __init__(self, answer: Completed | Exception) -> None:
        self.answer = answer
        self.argv: list[str] = []
        self.stdin = b""

    def run(self, argv: list[str], stdin: bytes = b"", *, timeout_s: float) -> Completed:
        self.argv, self.stdin = argv, stdin
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        """Nothing."""


def element(stdout: bytes | Exception, code: int = 0, stderr: bytes = b"", **ce: object) -> BatchElement:
    answer = stdout if isinstance(stdout, Exception) else Completed(code, stdout, stderr)
    return BatchElement(queue(**ce), "wrapper", Scripted(answer), Slurm())  # type: ignore[arg-type]


BATCH = PilotBatch("tag", {11: Secret("token-11"), 7: Secret("token-7")})


# --- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdout", "code"),
    [
        (b"", 0),
        (b"", 127),
        (b"Welcome to the login node\n", 0),
        (b"airpanda-answer submitted 12", 0),  # cut: the id may go on
        (b"airpanda-answer", 0),
        (b"This account is currently not available.\n", 1),
        (b"\xff\xfe\n", 0),
    ],
)
def test_no_whole_answer_is_uncertain_for_a_submit_and_unavailable_otherwise(stdout: bytes, code: int) -> None:
    with pytest.raises(SubmitUncertainError):
        element(stdout, code).submit(BATCH)
    with pytest.raises(CEUnavailableError):
        element(stdout, code).find("tag")


def test_a_lost_answer_is_uncertain_for_a_submit_only() -> None:
    with pytest.raises(SubmitUncertainError):
        element(AnswerLostError("gone")).submit(BATCH)
    with pytest.raises(CEUnavailableError):
        element(AnswerLostError("gone")).status([Handle("1_0@tag")])
    with pytest.raises(CEUnavailableError):
        element(CEUnavailableError("not sent")).submit(BATCH)


def test_an_id_that_is_no_id_is_refused() -> None:
    with pytest.raises(InvalidDescriptionError, match="no handle"):
        element(b"airpanda-answer submitted 1;2\n").submit(BATCH)


def test_noise_around_the_answer_is_no_harm_and_pilots_are_indexed_by_id() -> None:
    submission = element(b"motd\nairpanda-answer submitted 12\n").submit(BATCH)
    assert submission.handles == {7: "12_0@tag", 11: "12_1@tag"}
    assert element(b"airpanda-answer adopted 12\n").submit(BATCH).adopted == {7, 11}


def test_a_timeout_of_squeue_is_no_uncertain_submission() -> None:
    said = b"slurm_load_jobs error: Socket timed out on send/recv operation"
    with pytest.raises(CEUnavailableError):
        element(b"airpanda-answer refused\n", stderr=said).find("tag")
    with pytest.raises(SubmitUncertainError):
        element(b"airpanda-answer refused\n", stderr=said).submit(BATCH)


def test_secrets_travel_as_data_and_are_in_no_text() -> None:
    made = element(b"airpanda-answer submitted 12\n")
    made.submit(BATCH)
    transport = made._transport
    assert isinstance(transport, Scripted)
    assert "token-" not in " ".join(transport.argv)
    assert "token-" not in repr(BATCH)
    size = int(transport.argv[2].split("head -c ")[1].split(")")[0])
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(transport.stdin[size:]))) as tar:
        assert {(member.name, member.mode) for member in tar} == {
            (name, 0o600) for name in ("job.sh", "wrapper.sh", "copies", "0/pilot.json", "1/pilot.json")
        }
        second = tar.extractfile("1/pilot.json")
        assert second is not None
        assert json.loads(second.read())["token"] == "token-11"


# --- what files and queue say together -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "state", "code"),
    [
        ("5|0|RUNNING|tag|None", "running", None),
        ("5|0|COMPLETED|tag|None\ntag/0/exit:0", "done", 0),
        ("tag/0/exit:0", "done", 0),
        ("tag/0/exit:0\ntag/0/cancelled:1", "done", 0),
        ("tag/0/exit:7", "failed", 7),
        ("5|0|FAILED|tag|NonZeroExitCode\ntag/0/exit:7", "failed", 7),
        ("5|0|TIMEOUT|tag|TimeLimit\ntag/0/exit:143", "timeout", 143),
        ("5|0|FAILED|tag|None\ntag/0/cancelled:1", "cancelled", None),
        ("5|0|RUNNING|tag|None\ntag/0/cancelled:1", "running", None),
        ("tag/0/cancelled:1", "cancelled", None),
        ("5|N/A|CANCELLED|tag|None", "cancelled", None),
        ("5|0|RUNNING|tag|None\n5|N/A|CANCELLED|tag|None", "running", None),
        ("", "unknown", None),
        ("5|0|COMPLETED|other|None", "unknown", None),
        ("6|0|COMPLETED|tag|None", "unknown", None),
        ("tag/job:6\ntag/0/exit:0\ntag/0/cancelled:1", "unknown", None),  # files of a later job with this tag
        ("tag/job:5\ntag/0/exit:0", "done", 0),
        ("tag/1/exit:0", "unknown", None),
        ("tag/0/exit:", "unknown", None),
        ("tag/0/exit:x", "unknown", None),
        ("tag2/0/exit:0", "unknown", None),
    ],
)
def test_status(said: str, state: str, code: int | None) -> None:
    handle = Handle("5_0@tag")
    seen = element(f"{said}\nairpanda-answer end\n".encode()).status([handle])[handle]
    assert (seen.state, seen.exit_code) == (PilotJobState(state), code)


def test_find_knows_what_the_queue_has_forgotten() -> None:
    said = b"tag/job:5\ntag/copies:3 abc\n5|1|RUNNING|tag|None\ntag/0/exit:0\nairpanda-answer end\n"
    found = element(said).find("tag")
    assert {handle: status.state.value for handle, status in found.items()} == {
        "5_0@tag": "done",
        "5_1@tag": "running",
        "5_2@tag": "unknown",
    }


@given(st.binary())
def test_any_output_is_an_answer_or_none(data: bytes) -> None:
    answer = remote.parse_answer(data)
    assert answer is None or answer.word


# --- what is sent --------------------------------------------------------------------------------------------


def test_programs_are_ascii_and_the_command_line_holds_no_line_break() -> None:
    for operation in remote.PROGRAMS:
        argv, stdin = remote.command(Slurm(), operation, ("/d", "x"), b"data")
        assert stdin.endswith(b"data")
        assert not any("\n" in word for word in argv)


def test_the_same_pilots_have_the_same_identity_in_any_order() -> None:
    assert remote.identity([3, 1, 2]) == remote.identity([1, 2, 3])
    assert remote.identity([1, 2]) != remote.identity([12])
    assert remote.identity([1, 2]).split()[0] == "2"


# --- queue files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('host = "h"', "host needs conn_id"),
        ('host = "h"\nconn_id = "c"', "known_hosts"),
        ('host = "h"\nconn_id = "c"\nknown_hosts = "relative"', "absolute path"),
        ('host = "-oProxyCommand=x"\nconn_id = "c"\nknown_hosts = "/k"', "host name"),
        ('host = "h"\nconn_id = "c"\nknown_hosts = "/k"\nenter = ["/x"]', "enter is for this machine"),
        ("port = 0", "port = 0"),
        ('enter = ["nsenter"]', "absolute path"),
        ("max_pilots = -1", "max_pilots"),
        ('options = ["a\\nb"]', "line breaks"),
        ('account = "x"', "no key 'account'"),
        ('partitoin = "x"', "did you mean 'partition'"),
        ('options = "--x"', "list of texts"),
    ],
)
def test_wrong_queue_files(more: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_queue(TEXT.format(more=more), "T.toml")


def test_a_queue_survives_the_wire() -> None:
    more = 'host = "h"\nconn_id = "c"\nknown_hosts = "/k"\npartition = "p"\noptions = ["--qos=x"]\nscratch = "/tmp"'
    first = parse_queue(TEXT.format(more=more), "T.toml")
    assert PandaQueue.from_wire(json.loads(json.dumps(first.to_wire()))) == first


def test_a_host_needs_a_login() -> None:
    with pytest.raises(CECredentialError, match="connection 'c'"):
        make_batch_element(queue(host="h", conn_id="c", known_hosts="/k"), "w", None)
