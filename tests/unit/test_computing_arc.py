"""ARC without a CE: what it is told, what it answers, and what pilots do with a sealed token."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pki import Pki, pki

from airpanda.computing import arc_answers as answers
from airpanda.computing.arc_description import LOG, PilotStart, describe, job_name, parse_job_name, start_script
from airpanda.computing.configuration import pilot_json
from airpanda.computing.elements import PilotJobState
from airpanda.computing.queues import PandaQueue, parse_queue
from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret
from airpanda.pilot.config import sealing_purpose, take_config
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy
from airpanda.x509.sealing import seal

__all__ = ["pki"]
TOKEN = "a pilot's token, such as a JWT of several hundred characters" * 5
QUEUE = """
[queue]
name = "ARC"
[slot]
cores = 4
memory_mib = 8000
walltime_s = 3600
[ce]
kind = "arc"
url = "https://arc.example.org/arex"
ca_dir = "/etc/grid-security/certificates"
[pilot]
code = "/cvmfs/it's here/plugins"
dispatcher_url = "https://panda.example.org"
ca_dir = "/etc/grid-security/certificates"
"""
ADL = "{http://www.eu-emi.eu/es/2010/12/adl}"


@pytest.fixture(scope="module")
def queue() -> PandaQueue:
    return parse_queue(QUEUE, "ARC.toml")


@pytest.fixture(scope="module")
def proxy(pki: Pki) -> ProxyCredential:
    robot = ProxyCredential.from_files(*pki.user("pilot"))
    return create_proxy(robot, lifetime=timedelta(hours=1), now=datetime.now(UTC))


def start(wrapper: str = "exit 0\n") -> PilotStart:
    return PilotStart('{"proxy": "@proxy@"}', wrapper, "/cvmfs/it's here", "/usr/bin/python3")


# --- the description ------------------------------------------------------------------------------------------


def test_a_batch_is_one_document_with_a_job_for_each_pilot(queue: PandaQueue) -> None:
    root = ElementTree.fromstring(describe(queue, "long", "abc123", {"t.7": start(), "t.9": start()}))
    jobs = root.findall(f"{ADL}ActivityDescription")
    assert [job.findtext(f".//{ADL}Name") for job in jobs] == ["t.7", "t.9"]
    text = {
        key: jobs[0].findtext(f".//{ADL}{key}") for key in ("NumberOfSlots", "IndividualPhysicalMemory", "WallTime")
    }
    assert text == {"NumberOfSlots": "4", "IndividualPhysicalMemory": str(8000 * 1024**2), "WallTime": "3600"}
    assert jobs[0].findtext(f".//{ADL}QueueName") == "long"
    assert jobs[0].findtext(f".//{ADL}OutputFile/{ADL}Name") == LOG
    assert "abc123" in ElementTree.tostring(jobs[1], encoding="unicode")


def test_arguments_hold_nothing_that_a_shell_changes(queue: PandaQueue) -> None:
    """A-REX puts them between double quotes of the job's script."""
    root = ElementTree.fromstring(describe(queue, "", "d", {"t.1": start("echo '$HOME' `id` \"x\"\n")}))
    first, second = (element.text or "" for element in root.iter(f"{ADL}Argument"))
    assert first == "-c"
    assert not set(second) & set("\"'`$\\\n&")
    packed = second.split("echo ")[1].split("|")[0]
    assert gzip.decompress(base64.b64decode(packed)).decode() == start_script(start("echo '$HOME' `id` \"x\"\n"))
    assert not list(root.iter(f"{ADL}QueueName"))


@given(tag=st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z"), pilot=st.integers(0, 10**18))
def test_names_are_read_back(tag: str, pilot: int) -> None:
    assert parse_job_name(job_name(tag, pilot)) == (tag, pilot)


@pytest.mark.parametrize("name", ["", "t", "t.", ".1", "t.1.2", "t.x", "a b.1", "t.1\n", "gridjob"])
def test_other_names_are_somebody_elses(name: str) -> None:
    assert parse_job_name(name) is None


def run_start(tmp_path: Path, wrapper: str, proxy: str) -> subprocess.CompletedProcess[str]:
    script = start_script(start(wrapper))
    (tmp_path / "start.sh").touch()
    environment = {"PATH": "/usr/bin:/bin", "SECRET_OF_SITE": "x", "X509_USER_PROXY": proxy}
    return subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20
    )


def test_the_start_gives_the_pilot_its_proxy_and_a_clean_environment(tmp_path: Path) -> None:
    done = run_start(
        tmp_path, 'cat "$5"; echo; env; printf "%s\\n" "$@"; stat -c %a . "$5"; exit 7\n', "/a/job.x.proxy"
    )
    assert done.returncode == 7, done
    assert '{"proxy": "/a/job.x.proxy"}' in done.stdout
    assert "/cvmfs/it's here\n" in done.stdout
    assert "SECRET_OF_SITE" not in done.stdout
    assert done.stdout.endswith("700\n600\n")
    assert not (tmp_path / "pilot/pilot.json").exists()
    assert tmp_path.stat().st_mode & 0o777 == 0o711


@pytest.mark.parametrize("proxy", ["", "/a b", "/a|b", "/a&b", '/a"b', "/a\nb"])
def test_a_place_of_the_proxy_that_cannot_be_is_refused(tmp_path: Path, proxy: str) -> None:
    done = run_start(tmp_path, "echo ran\n", proxy)
    assert (done.returncode, done.stdout) == (71, "")
    assert "administrator" in done.stderr


# --- the answers ----------------------------------------------------------------------------------------------


def test_one_many_and_no_jobs_look_different_and_mean_the_same() -> None:
    assert answers.parse_jobs(b"") == answers.parse_jobs(b"\n") == answers.parse_jobs(b"{}") == {}
    assert answers.parse_jobs(b'{"job":{"id":"a","state":"RUNNING"}}') == {"a": "RUNNING"}
    assert answers.parse_jobs(b'{"job":[{"id":"a","state":"X"},{"id":"b"}]}') == {"a": "X", "b": ""}


@pytest.mark.parametrize(
    "body", [b'{"job":[{"id":"a"', b"<html>", b'{"job":"a"}', b'{"job":[1]}', b"[]", b'{"job":{"id":"../x"}}', b"\xff"]
)
def test_a_cut_or_foreign_answer_is_noticed(body: bytes) -> None:
    with pytest.raises(answers.AnswerError):
        answers.parse_jobs(body)


def test_items_keep_their_order_and_refusals_have_no_id() -> None:
    body = b'{"job":[{"status-code":"500","reason":"no"},{"status-code":"201","reason":"Created","id":"a"}]}'
    assert [(item.code, item.reason, item.job) for item in answers.parse_items(body)] == [
        (500, "no", ""),
        (201, "Created", "a"),
    ]
    for broken in (b'{"job":[{"id":"a"}]}', b'{"job":[{"status-code":"x"}]}'):
        with pytest.raises(answers.AnswerError, match="status code"):
            answers.parse_items(broken)


@pytest.mark.parametrize(
    ("reason", "state", "code"),
    [
        ("LRMS error: (3) Job finished with wrong exit code - 3 != 0", PilotJobState.FAILED, 3),
        ("Job is canceled by external request", PilotJobState.CANCELLED, None),
        ("LRMS error: (271) Job exceeded its walltime limit", PilotJobState.TIMEOUT, None),
        ("Job submission to LRMS failed", PilotJobState.FAILED, None),
        ("", PilotJobState.FAILED, None),
    ],
)
def test_how_failed_jobs_ended(reason: str, state: PilotJobState, code: int | None) -> None:
    seen = answers.ended(reason)
    assert (seen.state, seen.exit_code) == (state, code)


# --- the sealed token -----------------------------------------------------------------------------------------


def test_a_pilot_opens_its_token_with_its_proxy(tmp_path: Path, queue: PandaQueue, proxy: ProxyCredential) -> None:
    proxy.write(tmp_path / "proxy")
    key = proxy.certificate.public_key()

    def told(pilot_id: int, sealed_for: int) -> Path:
        sealed = seal(key, Secret(TOKEN), purpose=sealing_purpose("t", sealed_for))
        text = pilot_json(queue, "t", pilot_id, Secret(TOKEN), sealed=sealed, proxy=str(tmp_path / "proxy"))
        assert TOKEN not in text
        path = tmp_path / "pilot.json"
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    config = take_config(told(5, 5))
    assert config.token.reveal() == TOKEN
    assert TOKEN not in json.dumps(config.without_token()) + repr(config)
    assert config.without_token()["sealed_token"] == ""
    with pytest.raises(ConfigurationError, match="another pilot"):
        take_config(told(6, 5))
    (tmp_path / "proxy").unlink()
    with pytest.raises(ConfigurationError, match="needs the key"):
        take_config(told(5, 5))


# --- the queue file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('url = "https://arc.example.org/arex"', 'url = "http://arc.example.org/arex"', "ARC.toml:10: .*url"),
        ('url = "https://arc.example.org/arex"', 'url = "https://u@arc.example.org/arex"', "ARC.toml:10: .*url"),
        ('ca_dir = "/etc/grid-security/certificates"\n[pilot]', 'ca_dir = "certs"\n[pilot]', "ARC.toml:11: .*ca_dir"),
        ('kind = "arc"', 'kind = "arc"\nqueue = "a b"', "ARC.toml:10: .*queue"),
        ('kind = "arc"', 'kind = "arc"\nhost = "x"', "no key 'host'"),
        ('kind = "arc"', 'kind = "slurm"', "no key 'url'"),
    ],
)
def test_a_wrong_queue_file_is_refused_with_line_and_key(old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_queue(QUEUE.replace(old, new), "ARC.toml")


def test_pilots_of_an_arc_ce_use_the_delegated_proxy_whatever_the_queue_says_for_others(queue: PandaQueue) -> None:
    """Their tokens are sealed for its key."""
    wire = queue.to_wire()
    wire["pilot"]["proxy"] = "/etc/grid-security/robot.proxy"
    mixed = PandaQueue.from_wire(wire)
    assert json.loads(pilot_json(mixed, "t", 1, Secret(TOKEN), sealed="x", proxy="@proxy@"))["proxy"] == "@proxy@"
    assert json.loads(pilot_json(mixed, "t", 1, Secret(TOKEN)))["proxy"] == "/etc/grid-security/robot.proxy"


def test_only_a_ce_that_brings_a_proxy_does_without_one_in_the_queue_file(queue: PandaQueue) -> None:
    assert PandaQueue.from_wire(queue.to_wire()) == queue
    local = QUEUE.replace('kind = "arc"\nurl = "https://arc.example.org/arex"\n', 'kind = "local"\ndirectory = "/x"\n')
    with pytest.raises(ConfigurationError, match=r"\[pilot\] proxy is missing"):
        parse_queue(local.replace('ca_dir = "/etc/grid-security/certificates"\n[pilot]', "[pilot]"), "ARC.toml")
