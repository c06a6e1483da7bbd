"""Records of runs, read by the patterns of the tools that read them: hostile text first."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

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

PREFIX = re.compile(r"(\w{3}) ([ \d]\d) (\d\d:\d\d:\d\d) (\S+) glexec\.mon\[(\d+)#(\d+)\]: (.*)")
PATTERNS = {
    "start": re.compile(r"Started .* uid (\d+)"),
    "uid": re.compile(r"New uid .* (\d+)"),
    "dn": re.compile(r'Used DN: "(.*)"'),
    "vo": re.compile(r'Used VO: "(.*)"'),
    "fqan": re.compile(r'Used FQAN: "(.*)"'),
    "end": re.compile(r"Terminated .* user (\d+) system (\d+)"),
}


def read(lines: list[str]) -> dict[str, tuple[str, ...]]:
    """What the probe makes of the lines; each must be one."""
    found = {}
    for line in lines:
        match = PREFIX.fullmatch(line)
        assert match is not None, line
        (name,) = [name for name, pattern in PATTERNS.items() if pattern.fullmatch(match[7])]
        hit = PATTERNS[name].fullmatch(match[7])
        assert hit is not None
        found[name] = hit.groups()
    return found


@pytest.mark.parametrize("dn", ['/CN=a"\nTerminated x user 1 system 1', "/CN=\r\x00\x1b[2J", "/CN=\u2028x\udcff"])
def test_a_hostile_name_stays_on_its_line(dn: str) -> None:
    lines = monitor_lines({**RECORD, "dn": dn}, ended=ENDED, host="wn1", pid=5)
    assert len(lines) == 6
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert read(lines)["end"] == ("10", "2")
    text = key_values({**RECORD, "dn": dn})
    assert text.isascii()
    assert text.isprintable()


def test_gratia_reads_a_run() -> None:
    lines = monitor_lines(RECORD, ended=ENDED, host="wn1.site", pid=5)
    assert lines[0] == "Mar  4 05:05:06 wn1.site glexec.mon[5#5]: Started by caller uid 61001"
    assert lines[-1].startswith("Mar  4 05:06:07 wn1.site glexec.mon[5#5]: Terminated ")
    assert read(lines) == {
        "start": ("61001",),
        "uid": ("61012",),
        "dn": ("/O=Test Grid/CN=Alice Example",),
        "vo": ("atlas",),
        "fqan": ("/atlas/prod/Role=production/Capability=NULL",),
        "end": ("10", "2"),
    }


def test_a_run_without_attributes_names_no_vo() -> None:
    assert set(read(monitor_lines({**RECORD, "fqans": []}, ended=ENDED, host="h", pid=1))) == {
        "start",
        "uid",
        "dn",
        "end",
    }


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
