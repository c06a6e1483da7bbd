"""`make demo-once` as an ordinary user: the same chain, no switch of accounts, and nobody told otherwise."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.demo import BASE, Demo, User, make_home, own_python, system_python

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2700)]

UID = 61_700
DIRECTORY = Path(f"{BASE}-user")


@pytest.fixture(name="user")
def ordinary_user() -> Iterator[User]:
    """Somebody who is not root, with a 0700 home; whoever runs the tests, if that is not root."""
    home = Path(f"{BASE}-home of a user")
    shutil.rmtree(home, ignore_errors=True)
    uid = UID if os.geteuid() == 0 else None
    make_home(home, uid=uid)
    yield User(home, own_python() if uid is None else system_python(), uid)
    shutil.rmtree(home)


def test_no_switch_and_everybody_is_told(user: User, tmp_path: Path) -> None:
    """Our own MyProxy server serves here, so that both servers are seen in the demonstration."""
    checkout = user.home / "a checkout"
    demo = Demo.start("demo-once", user, checkout, DIRECTORY, tmp_path / "output", AIRPANDA_DEMO_MYPROXY="embedded")
    assert demo.wait() == 0, demo.text[-3000:]
    assert demo.left() == []
    report = json.loads((DIRECTORY / "report.json").read_text())
    uid = user.uid or os.geteuid()
    jobs = [job for job in report["jobs"] if job["status"] == "finished"]
    assert len(jobs) >= 23
    assert {job["identity_switched"] for job in report["jobs"]} == {False}
    assert {(job["pilot_uid"], job["account_uid"]) for job in jobs} == {(uid, uid)}
    assert len({job["owner_dn"] for job in jobs}) == 3
    assert {job["account_name"] for job in jobs} == {"demouser" if user.uid else pwd.getpwuid(uid).pw_name}
    assert Path(report["picture"]).read_bytes().startswith(b"\x89PNG")
    assert "identity_switched = false: started by an ordinary user" in demo.text
    assert "MyProxy (our own) is ready" in demo.text
    rows = [line.split() for line in demo.text.splitlines() if "analysis_zmumu.peak" in line]
    assert len(rows) == 2
    assert all("NO" in row and "yes" not in row for row in rows)
