"""Records of runs, read by the patterns of the tools that read them: hostile text first."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airpanda.glexec.launcher.audit import key_values
from airpanda.glexec.launcher.gratia import monitor_lines

ENDED = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
RECORD = {
    "id": "PandaID=7 attempt=1",
    "launcher": "socket",
    "caller": "pilot",
    "caller_uid": 61001,
    "dn": "/O=Test Grid/CN=Alice Example",
    "issuer": "/O=Test Grid/CN=CA",
    "serial": "1f",
    "fingerprint": "ab",
    "fqans": ["/atlas/prod/Role=production/Capability=NULL", "/atlas/Role=NULL/Capability=NULL"],
    "user": "alice",
    "uid": 61012,
    "gid": 61012,
    "gids": [61012],
    "lease": None,
    "identity_switched": True,
    "rc": 0,
    "wall": 60.4,
    "cpu": 12.6,
    "cpu_user": 10.4,
    "cpu_system": 2.2,
    "maxrss_kb": 2048,
}

PREFIX = re.compile(r"(\w{3} [ \d]\d \d\d:\d\d:\d\d) (\S+) glexec\.mon\[(\d+)#(\d+)\]: (.*)")


def read(lines: list[str]) -> dict[str, Any]:
    """What Gratia's parser makes of them: from the file's end, by first and last words; what it reads last counts."""
    found: dict[str, Any] = {}
    for line in reversed(lines):
        match = PREFIX.fullmatch(line)
        assert match is not None, line
        message, last = match[5], match[5].rpartition(" ")[2]
        # Its clock is the machine's, and syslog says no year.
        at = int(time.mktime(time.strptime(f"{ENDED.year} {match[1]}", "%Y %b %d %H:%M:%S")))
        found["id"] = match[3], match[4]
        kind = message[:7]
        if kind in ("Started", "New uid"):
            found["uid"] = int(last)
            found |= {"start": at} if kind == "Started" else {}
        elif kind in ("Used DN", "Used VO", "Used FQ"):
            found[kind[5:]] = message[message.index('"') + 1 : -1]
        elif kind == "Termina":
            *_, user, word, system = message.split(" ")
            assert word == "system"
            found |= {"end": at, "user": int(user), "system": int(system)}
    return found


@pytest.fixture(name="zone", params=["UTC", "America/Chicago", "Asia/Kolkata"])
def _zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("dn", ['/CN=a"\nTerminated x user 1 system 1', "/CN=\r\x00\x1b[2J", "/CN=\u2028x\udcff"])
def test_a_hostile_name_stays_on_its_line(dn: str) -> None:
    lines = monitor_lines({**RECORD, "dn": dn}, ended=ENDED, host="wn1", pid=5)
    assert len(lines) == 6
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert [line.count('"') for line in lines] == [0, 0, 2, 2, 2, 0]
    assert (read(lines)["user"], read(lines)["system"]) == (10, 2)
    text = key_values({**RECORD, "dn": dn})
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.usefixtures("zone")
def test_gratia_reads_a_run_of_the_owners_account_at_its_time() -> None:
    """The account is the target's, not the pilot's; the time is what the machine's clock shows, wherever it stands."""
    lines = monitor_lines(RECORD, ended=ENDED, host="wn1.site", pid=5)
    ended = int(ENDED.timestamp())
    assert read(lines) == {
        "id": ("5", f"{(ended - 60) * 1000 - 400}"),
        "start": ended - 61,  # 60.4 s before
        "end": ended,
        "uid": 61012,
        "DN": "/O=Test Grid/CN=Alice Example",
        "VO": "atlas",
        "FQ": "/atlas/prod/Role=production/Capability=NULL",
        "user": 10,
        "system": 2,
    }


def test_a_name_in_openssls_form_is_not_changed() -> None:
    dn = "/O=Test Grid/CN=J\\xC3\\xBCrgen"
    assert read(monitor_lines({**RECORD, "dn": dn}, ended=ENDED, host="h", pid=1))["DN"] == dn


def test_two_runs_of_one_process_number_are_two() -> None:
    one, two = (monitor_lines(RECORD, ended=ENDED + timedelta(seconds=n), host="h", pid=5) for n in (0, 90))
    assert read(one)["id"] != read(two)["id"]


def test_a_run_without_attributes_names_no_vo() -> None:
    found = read(monitor_lines({**RECORD, "fqans": []}, ended=ENDED, host="h", pid=1))
    assert set(found) == {"id", "start", "uid", "DN", "end", "user", "system"}


def test_the_syslog_line_has_all_that_an_accounting_record_needs() -> None:
    """APEL's parsers split such lines into key=value; quoted text is JSON's."""
    found = dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', key_values(RECORD)))
    assert json.loads(found["dn"]) == RECORD["dn"]
    assert json.loads(found["user"]) == "alice"
    assert {"id", "fqans", "issuer", "serial", "fingerprint", "uid", "gid", "launcher", "rc", "wall", "cpu"} <= set(
        found
    )
    assert (found["wall"], found["cpu"], found["maxrss_kb"], found["identity_switched"]) == (
        "60.4",
        "12.6",
        "2048",
        "true",
    )
    assert "lease" not in found
