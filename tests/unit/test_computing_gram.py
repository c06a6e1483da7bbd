"""GRAM: what is said to it, what its answers mean, and the shell at the CE."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chains import NOW, credential, eec

from airpanda.computing import gram_client, remote
from airpanda.computing.ces import GramCE
from airpanda.computing.dialects.gram import PROXY_MARK, Gram, start_script
from airpanda.computing.dialects.port import CEJob
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
    PilotBatch,
    PilotJobState,
    SubmitUncertainError,
    ThrottledError,
    make_element,
)
from airpanda.computing.gram import GramElement
from airpanda.computing.gram_rsl import contact_in, quoted, relation, state_in, to_error
from airpanda.computing.queues import parse_queue
from airpanda.computing.transports import Completed, LocalTransport
from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret

CONTACT = "https://localhost:35823/17370775102614161646/72057598265949059/"
QUEUE = """
[queue]
name = "G"
[ce]
kind = "gram"
contact = "ce.example.org:2119"
ca_dir = "/etc/grid-security/certificates"
directory = "/home/pilot/pilots"
[pilot]
code = "/opt/airpanda"
dispatcher_url = "https://panda.example.org"
ca_dir = "/etc/grid-security/certificates"
"""


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "GRAM Job submission failed because the connection to the server failed (check host and port)"
            " (error code 12)",
            CEUnavailableError,
        ),
        (
            "GRAM Job submission failed because authentication with the remote server failed (error code 7)",
            CECredentialError,
        ),
        (
            "GRAM Job submission failed because the gatekeeper failed to find the requested service (error code 93)",
            InvalidDescriptionError,
        ),
        (
            "GRAM Job submission failed because the provided RSL 'queue' parameter is invalid (error code 37)",
            InvalidDescriptionError,
        ),
        ("GRAM Job submission failed because data transfer to the server failed (error code 10)", SubmitUncertainError),
        ("the job manager timed out while waiting for a commit signal (error code 111)", SubmitUncertainError),
        ("qsub: would exceed queue's per-user limit (error code 17)", ThrottledError),
        (
            "globus_credential: Error with credential: The proxy credential: /t with subject: x expired",
            CECredentialError,
        ),
        ("something new", CEUnavailableError),
        ("", CEUnavailableError),
    ],
)
def test_messages_become_errors(said: str, kind: type[ComputingElementError]) -> None:
    error = to_error("the CE", said)
    assert type(error) is kind
    assert str(error).startswith("the CE")


def test_words_of_rsl_mean_exactly_their_text() -> None:
    assert relation("arguments", 'a "b"', "$(HOME)", "c'\\") == '(arguments="a ""b""" "$(HOME)" "c\'\\")'
    with pytest.raises(InvalidDescriptionError, match="NUL"):
        quoted("a\0b")


def test_contacts_and_states_are_found_in_what_the_client_prints() -> None:
    assert contact_in(f"a warning\n{CONTACT}\n") == CONTACT
    assert contact_in("https://localhost:1/x\n") == contact_in(f"see {CONTACT}") == contact_in("") == ""
    assert state_in("ACTIVE\n") is PilotJobState.RUNNING
    assert state_in("SUSPENDED") is PilotJobState.HELD
    assert state_in("WHAT") is state_in("") is None


def test_copies_that_have_not_ended() -> None:
    text = (
        f"hello\nairpanda-copy started ap-1/0 {CONTACT}\nairpanda-copy waiting ap-1/1 {CONTACT}\n"
        "airpanda-copy waiting ap-1/2 -\nairpanda-copy started ap-1/3 unknown\nairpanda-copy waiting ap-1/x -\n"
    )
    assert [(job.index, job.state.value) for job in Gram().parse_jobs(text)] == [
        (0, "running"),
        (1, "queued"),
        (2, "submitted"),
        (3, "running"),
    ]
    assert Gram().parse_contacts(text) == {("ap-1", 0): CONTACT, ("ap-1", 1): CONTACT}


@given(st.text())
def test_any_output_is_read_without_an_error(text: str) -> None:
    assert all(isinstance(job, CEJob) for job in Gram().parse_jobs(text))
    assert state_in(text) in (None, *PilotJobState)


def place(tmp_path: Path, wrapper: str) -> Path:
    batch = tmp_path / "a b'c" / "t"
    (batch / "0").mkdir(parents=True)
    (batch / "0" / "pilot.json").write_text(f'{{"token": "t", "proxy": "{PROXY_MARK}"}}')
    (batch / "wrapper.sh").write_text(wrapper)
    (batch / "job.sh").write_text(start_script(str(batch.parent), "t", code="/c d", python=""))
    return batch


def run_job(batch: Path, **settings: str) -> int:
    env = {"PATH": "/usr/bin:/bin", "X509_USER_PROXY": "/p/x509", "GLOBUS_GRAM_JOB_CONTACT": CONTACT, **settings}
    return subprocess.run(["sh", f"{batch}/job.sh", "0"], env=env, cwd="/", timeout=30, check=False).returncode


def test_of_two_jobs_for_one_copy_one_becomes_the_pilot(tmp_path: Path) -> None:
    batch = place(tmp_path, 'echo "$@"; cat pilot.json; env; exit 3\n')
    assert run_job(batch) == 3
    assert run_job(batch) == 0
    log = (batch / "0" / "pilot.log").read_text()
    assert log.startswith('--code /c d --python  pilot.json\n{"token": "t", "proxy": "/p/x509"}')
    assert "X509_USER_PROXY" not in log
    assert log.count("--code") == 1
    assert (batch / "0" / "exit").read_text() == "3\n"
    assert (batch / "0" / "contact").read_text() == f"{CONTACT}\n"
    assert not (batch / "0" / "pilot.json").exists()


@pytest.mark.parametrize("known", [f"{CONTACT}\n", None])
def test_a_job_that_does_not_know_its_contact_leaves_that_on_record(tmp_path: Path, known: str | None) -> None:
    """A site's job manager may give the job another environment; without its contact it cannot be cancelled."""
    batch = place(tmp_path, "exit 3\n")
    if known is not None:
        (batch / "0" / "contact").write_text(known)
    assert run_job(batch, GLOBUS_GRAM_JOB_CONTACT="") == 3
    assert [path.read_text() for path in (batch / "0").glob("contact*")] == ([known] if known else [])


def test_a_pilot_that_was_cancelled_before_it_began_does_not_begin(tmp_path: Path) -> None:
    batch = place(tmp_path, "echo here\n")
    (batch / "0" / "cancelled").touch()
    assert run_job(batch) == 0
    assert not (batch / "0" / "pilot.log").exists()


def test_a_proxy_that_is_missing_or_no_plain_path_starts_no_pilot(tmp_path: Path) -> None:
    for number, proxy in enumerate(("", "/p|e id", "/p\n")):
        batch = place(tmp_path / str(number), "echo here\n")
        assert run_job(batch, X509_USER_PROXY=proxy) == 71
        assert "no usable X509_USER_PROXY" in (batch / "0" / "pilot.log").read_text()
        assert not (batch / "0" / "pilot.json").exists()
        assert (batch / "0" / "exit").read_text() == "71\n"


def ask(directory: Path, operation: str, data: bytes) -> str:
    argv, stdin = remote.command(Gram(), operation, (str(directory),), data)
    return subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, timeout=30, check=False).stdout.decode()


def test_a_contact_is_recorded_once_and_the_job_knows_better(tmp_path: Path) -> None:
    for index in "012":
        (tmp_path / "t" / index).mkdir(parents=True)
    (tmp_path / "t/1/contact").write_text("its own\n")
    (tmp_path / "t/2/exit").write_text("0\n")
    (tmp_path / "t/copies").write_text("3 x\n")
    lines = "".join(f"t/{index} {CONTACT}\n" for index in range(4)).encode()
    assert ask(tmp_path, "record", lines) == "airpanda-answer end\n"
    assert (tmp_path / "t/0/contact").read_text() == f"{CONTACT}\n"
    assert (tmp_path / "t/1/contact").read_text() == "its own\n"
    seen = ask(tmp_path, "observe", b"t\n")
    assert f"airpanda-copy waiting t/0 {CONTACT}\n" in seen
    assert "t/2 " not in seen
    assert "t/2/exit:0\n" in seen


@pytest.mark.parametrize(
    ("complaint", "who"),
    [
        (None, "put /nowhere/certificates there, or the queue file must name another [ce] ca_dir"),
        (
            "No permissions to create new namespace, likely because the kernel does not allow non-privileged user"
            " namespaces. See <https://deb.li/bubblewrap> or <file:///usr/share/doc/bubblewrap/README.Debian.gz>.",
            "administrator must let Airflow's account make user namespaces",
        ),
        ("setting up uid map: Permission denied", "administrator must let Airflow's account make user namespaces"),
        ("Unknown option --share-net", "administrator must look"),
    ],
)
def test_what_keeps_globusrun_from_its_start_is_no_quarrel_with_the_ce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: str | None, who: str
) -> None:
    """Without a complaint here it is bubblewrap's own; its path speaks of certificates, as GRAM does of refusals."""
    programs = {"globusrun": "exit 0"}
    if complaint is not None:
        programs["bwrap"] = f'echo "bwrap: {complaint}" >&2; exit 1'
    for program, text in programs.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setattr(gram_client, "_PATH", f"{tmp_path}:{gram_client._PATH}")
    ce = parse_queue(QUEUE.replace("/etc/grid-security", "/nowhere"), "G.toml").ce
    assert isinstance(ce, GramCE)
    client = gram_client.GramClient(ce, credential(eec()), clock=lambda: NOW)
    with pytest.raises(CEUnavailableError) as caught:
        client.run(["true"], timeout_s=20)
    client.close()
    assert str(caught.value).startswith("this machine cannot run globusrun")
    assert who in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ce.example.org:2119", "https://ce", "contact = 'https://ce' must be host or host:port"),
        ('contact = "ce.example.org:2119"', "", "contact is missing"),
        ('"/home/pilot/pilots"', '"pilots"', "absolute path"),
        ("[pilot]", 'service = "a b"\n[pilot]', "must be a service such as"),
        ("[pilot]", 'rsl = ["(stdin=/x)(executable=/bin/id)"]\n[pilot]', "must be a relation"),
        ("[pilot]", 'ports = "20000-25000"\n[pilot]', "must be low,high"),
        ("[pilot]", 'subject = "host"\n[pilot]', "must be a DN"),
        ("[pilot]", 'contakt = "x"\n[pilot]', "did you mean 'contact'?"),
    ],
)
def test_errors_in_a_queue_file_name_what_is_wrong(old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^G\.toml:") as caught:
        parse_queue(QUEUE.replace(old, new, 1), "G.toml")
    assert words in str(caught.value)


def test_a_queue_needs_no_proxy_of_its_own_but_the_robots_credential(tmp_path: Path) -> None:
    queue = parse_queue(QUEUE, "G.toml")
    assert isinstance(queue.ce, GramCE)
    wrapper = tmp_path / "wrapper.sh"
    wrapper.touch()
    with pytest.raises(CECredentialError, match="robot's credential"):
        make_element(queue, wrapper)


class FakeCE:
    """GRAM in this process: programs run here; jobs are taken or refused as ``answers`` says, then all are taken."""

    def __init__(self, answers: list[ComputingElementError | None]) -> None:
        self.answers, self.taken = answers, 0
        self.credential = SimpleNamespace(not_after=datetime.now(UTC) + timedelta(days=1), identity="/CN=robot")

    def run(self, argv: list[str], stdin: bytes = b"", *, timeout_s: float) -> Completed:
        return LocalTransport().run(argv, stdin, timeout_s=timeout_s)

    def submit(self, rsl: str, *, timeout_s: float) -> str:
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        self.taken += 1
        return f"https://localhost:1/{self.taken}/1/"

    def state(self, contact: str) -> PilotJobState:
        return PilotJobState.QUEUED


def gram_element(tmp_path: Path, ce: FakeCE) -> GramElement:
    text = QUEUE.replace("/home/pilot/pilots", str(tmp_path / "pilots"))
    element = GramElement(parse_queue(text, "G.toml"), "exit 0\n", ce.credential)  # type: ignore[arg-type]
    element._gram = element._transport = ce  # type: ignore[assignment]
    return element


BATCH = PilotBatch("t", {number: Secret(f"token-{number}") for number in (1, 2, 3)})


@pytest.mark.parametrize(
    "refusal",
    [ThrottledError("would exceed", retry_after_s=1.0), CECredentialError("no"), InvalidDescriptionError("no")],
)
def test_a_refusal_after_some_were_taken_is_no_refusal_of_all(tmp_path: Path, refusal: ComputingElementError) -> None:
    """Any other error is recorded as failed: the dispatcher then ends pilots that wait at the CE."""
    ce = FakeCE([None, refusal, refusal])
    with pytest.raises(SubmitUncertainError):
        gram_element(tmp_path, ce).submit(BATCH)
    assert ce.taken == 1


def test_a_refused_repeat_loses_no_pilot_of_a_batch_that_is_half_there(tmp_path: Path) -> None:
    full = ThrottledError("would exceed queue's per-user limit", retry_after_s=1.0)
    ce = FakeCE([None, SubmitUncertainError("lost"), SubmitUncertainError("lost"), full])
    element = gram_element(tmp_path, ce)
    for kind in (SubmitUncertainError, ComputingElementError):
        with pytest.raises(kind):
            element.submit(BATCH)
    submission = element.submit(BATCH)
    states = {status.state for status in element.status(list(submission.handles.values())).values()}
    assert (ce.taken, states) == (3, {PilotJobState.QUEUED})
