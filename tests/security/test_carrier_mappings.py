"""Files move under the owner's account whatever way the launcher maps: own mapping, LCMAPS, dynamic uids."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.launcher import ALICE_UID, BOB_UID, PLUGINS, WORK, Site
from support.launcher_mappings import MAPPINGS, mapped_site

pytestmark = pytest.mark.root

# What a pilot does with one transfer in and one out; it runs on the node as the pilot's account.
PROGRAM = """
import json, sys
from pathlib import Path
from airpanda.glexec.switchers import GlexecSwitcher
from airpanda.pilot.transfers.mover import Mover
from airpanda.pilot.transfers.plan import Transfer

glexec, proxy, scratch, folder = map(Path, sys.argv[1:5])
switcher = GlexecSwitcher(glexec)
sandbox = switcher.make_sandbox(scratch, proxy)
made = folder / "made"
made.write_text("made by a payload")
switcher.put(sandbox, proxy, {"made": made})
mover = Mover(switcher, sandbox, proxy, folder, "test", "/nowhere", "/usr/bin:/bin", lambda: None)
told = []
for lfn, direction, url in (("x", "in", sys.argv[5]), ("made", "out", sys.argv[6])):
    moved, faults = mover.move([Transfer(lfn, direction, url, f".{direction}.part")], max_bytes=1000)
    told += [each.to_wire() for each in moved] + [each.to_wire() for each in faults]
switcher.remove(sandbox, proxy)
print(json.dumps(told))
"""


@pytest.fixture(scope="module", params=MAPPINGS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from mapped_site(request.param)


def move(site: Site, source: str, destination: str) -> list[dict[str, Any]]:
    scratch = site.directory(mode=0o711)
    arguments = [site.glexec, site.put_proxy(), scratch, site.directory(), source, destination]
    ran = site.run(sys.executable, "-c", PROGRAM, *map(str, arguments), env={"PYTHONPATH": str(PLUGINS)})
    assert ran.code == 0, ran
    assert os.listdir(site.node.path(scratch)) == []
    found: list[dict[str, Any]] = json.loads(ran.out.splitlines()[-1])
    return found


def test_another_owners_files_stay_closed(site: Site) -> None:
    place = site.directory(BOB_UID)
    secret = site.put(b"what only Bob may read", uid=BOB_UID, where=place)
    said = move(site, f"file://{secret}", f"file://{place}/out")
    assert [(each["code"], each["blame"]) for each in said] == [(1338, "user"), (1383, "user")]
    assert "what only" not in str(said)
    assert os.listdir(site.node.path(place)) == [secret.name]


def test_the_owners_file_comes_and_goes_as_the_owners(site: Site) -> None:
    place = site.directory(ALICE_UID)
    data = site.put(b"Alice's own", uid=ALICE_UID, where=place)
    came, went = move(site, f"file://{data}", f"file://{place}/out")
    assert (came["size"], went["url"]) == (11, f"file://{place}/out")
    stored = site.node.path(place / "out")
    status = stored.stat()
    assert (status.st_uid, status.st_mode & 0o777, stored.read_text()) == (ALICE_UID, 0o600, "made by a payload")
    assert sorted(os.listdir(stored.parent)) == sorted([data.name, "out"])


def test_outside_of_its_places_a_passing_account_leaves_nothing(site: Site) -> None:
    if site.mapping != "dynamic":
        pytest.skip("accounts of the machine write where they may")
    open_to_all = site.directory(mode=0o777, where=Path("/run"))
    data = site.put(b"Alice's own", uid=ALICE_UID, where=WORK)
    came, refused = move(site, f"file://{data}", f"file://{open_to_all}/out")
    assert (came["size"], refused["code"]) == (11, 1383)
    assert os.listdir(site.node.path(open_to_all)) == []
