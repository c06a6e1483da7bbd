"""Shares, priorities and caps are set by operators and hold at once; a working group is its members'."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.dispatcher import World, job_database, spec, template_database, world
from support.gateway import start_gateway
from support.pki import Pki, pki
from support.postgres import Database, postgres

from airpanda.__main__ import main

__all__ = ["job_database", "pki", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration


async def waiting(world: World, owner: str, fqan: str, n: int, *, group: str = "", **changes: Any) -> dict[str, Any]:
    """n jobs of somebody of a VO or one of its groups."""
    credential = await world.credential(owner, fqans=[fqan])
    jobs = [spec(f"job-{i}", working_group=group, **changes) for i in range(n)]
    return await world.submit(owner=owner, credential_id=credential["credential_id"], jobs=jobs)


async def given_to(world: World, n: int) -> list[str]:
    """Owners in the order in which one pilot is given n jobs, one at a time."""
    pilot = await world.pilot()
    jobs = [job for _ in range(n) for job in await pilot.acquire()]
    return [job["owner_dn"].rpartition("=")[2].split(" ")[0].lower() for job in jobs]


async def test_the_organisation_with_thrice_the_weight_gets_thrice_as_much(world: World) -> None:
    await waiting(world, "alice", "/atlas", 30)
    await waiting(world, "carol", "/cms", 30)
    await world.good("POST", "/v1/shares", {"kind": "vo", "name": "cms", "weight": 3})
    got = await given_to(world, 24)
    assert got.count("carol") in (16, 17, 18, 19, 20), got
    nodes = {(node["vo"], node["working_group"], node["owner"]): node for node in (await shares(world))["nodes"]}
    assert nodes["cms", None, None]["target"] == 0.75
    assert nodes["cms", None, None]["actual"] == pytest.approx(got.count("carol") / 24, abs=0.001)
    assert nodes["atlas", "", "alice"]["waiting"] == 30 - got.count("alice")
    assert nodes["cms", "", None]["jobs"] == nodes["cms", "", None]["cores"] == got.count("carol")


async def test_groups_share_within_their_organisation(world: World) -> None:
    """Nested: a group's weight takes nothing from another organisation."""
    await waiting(world, "alice", "/atlas/higgs", 30, group="higgs")
    await waiting(world, "bob", "/atlas/susy", 30, group="susy")
    await waiting(world, "carol", "/cms", 30)
    await world.good("POST", "/v1/shares", {"kind": "working_group", "name": "higgs", "weight": 4})
    got = await given_to(world, 40)
    assert got.count("carol") in range(17, 24), got
    assert got.count("alice") in range(13, 20), got


async def test_an_owner_may_come_first_and_a_cap_holds(world: World) -> None:
    await waiting(world, "alice", "/atlas", 5)
    await waiting(world, "bob", "/atlas", 5)
    await world.good("POST", "/v1/shares", {"kind": "owner", "name": "bob", "priority_offset": 500, "max_jobs": 3})
    got = await given_to(world, 9)
    assert got.count("bob") == 3
    assert got[:3].count("bob") >= 2, "but for a choice by age alone"
    await world.good("POST", "/v1/shares/end", {"kind": "owner", "name": "bob"})
    assert await given_to(world, 3) == ["bob", "bob"]


async def test_a_group_and_an_organisation_have_no_more_than_their_caps(world: World) -> None:
    """The other group, and the other organisation, go on; the sentence says whose cap it is."""
    higgs = await waiting(world, "alice", "/atlas/higgs", 5, group="higgs")
    await waiting(world, "bob", "/atlas/susy", 5, group="susy")
    await waiting(world, "carol", "/cms", 5)
    await world.good("POST", "/v1/shares", {"kind": "working_group", "name": "higgs", "max_cores": 2})
    await world.good("POST", "/v1/shares", {"kind": "vo", "name": "atlas", "max_jobs": 4})
    got = await given_to(world, 15)
    assert {owner: got.count(owner) for owner in got} == {"alice": 2, "bob": 2, "carol": 5}
    last = higgs["first_panda_id"] + 4
    says = await world.good("GET", f"/v1/job/{last}/why")
    assert says["why"] == "working group higgs of organisation atlas may use 2 cores at once, and uses them"
    await world.good("POST", "/v1/shares/end", {"kind": "working_group", "name": "higgs"})
    says = await world.good("GET", f"/v1/job/{last}/why")
    assert says["why"] == "organisation atlas may have 4 jobs with pilots at once, and has them"
    await world.good("POST", "/v1/shares", {"kind": "vo", "name": "atlas", "max_jobs": 5})
    assert await given_to(world, 3) in (["alice"], ["bob"])
    await world.good("POST", "/v1/shares/end", {"kind": "vo", "name": "atlas"})
    assert len(await given_to(world, 9)) == 5


async def shares(world: World) -> Any:
    return await world.good("GET", "/v1/shares")


@pytest.mark.parametrize(
    "wanted",
    [
        {"kind": "vo", "name": "atlas", "weight": 0},
        {"kind": "vo", "name": "atlas", "weight": -1},
        {"kind": "vo", "name": "atlas", "weight": "NaN"},
        {"kind": "vo", "name": "atlas", "weight": 1e9},
        {"kind": "queue", "name": "DEMO"},
        {"kind": "owner", "name": ""},
        {"kind": "owner", "name": "a\u0000b"},
        {"kind": "owner", "name": "alice", "max_jobs": -1},
        {"kind": "owner", "name": "alice", "max_cores": 1.5},
        {"kind": "owner", "name": "alice", "priority_offset": 10**6},
        {"kind": "vo", "name": "atlas", "max_jobs": -5},
        {"kind": "working_group", "name": "higgs", "max_cores": True},
        {"kind": "working_group", "name": "higgs", "priority_offset": 5},
        {"kind": "owner", "name": "alice", "surplus": 1},
    ],
)
async def test_shares_that_cannot_be(world: World, wanted: dict[str, Any]) -> None:
    refused = await world.call("POST", "/v1/shares", wanted)
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert (await shares(world))["told"] == []


async def test_only_who_acts_for_everybody_sees_and_sets(world: World) -> None:
    body = {"kind": "owner", "name": "alice", "max_jobs": 10**6}
    own = world.client_headers(owners=("alice",))
    some = world.client_headers(queues=("DEMO",))
    for method, path in (("GET", "/v1/shares"), ("POST", "/v1/shares"), ("POST", "/v1/shares/end")):
        assert (await world.call(method, path, body, headers=own)).status_code == 403
    assert (await world.call("GET", "/v1/shares", headers=some)).status_code == 200
    for path in ("/v1/shares", "/v1/shares/end"):
        refused = await world.call("POST", path, {"kind": "owner", "name": "alice"}, headers=some)
        assert (refused.status_code, "holds at all" in refused.json()["detail"]) == (403, True)
    assert (await world.call("POST", "/v1/shares/end", {"kind": "owner", "name": "alice"})).status_code == 404
    assert await world.sql("SELECT FROM panda_share") == []


async def test_a_repeat_replaces_and_says_who(world: World) -> None:
    body = {"kind": "owner", "name": "*", "max_jobs": 5}
    first = await world.good("POST", "/v1/shares", body)
    again = await world.good(
        "POST", "/v1/shares", body | {"max_jobs": 7, "weight": 2}, headers=world.client_headers(name="ops")
    )
    assert (first["set_by"], again["set_by"], again["max_jobs"]) == ("client:tests", "client:ops", 7)
    assert (await shares(world))["told"] == [again]


# --- working groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fqans", "held"),
    [
        (["/atlas/higgs"], True),
        (["/atlas", "/atlas/higgs/Role=production"], True),
        (["/atlas/phys/higgs"], True),
        (["/atlas"], False),
        ([], False),
        (["/atlas/Role=higgs"], False),
        (["/atlas/higgs2", "/atlas/my-higgs"], False),
        (["/higgs"], False),
        (["/atlas", "/cms/higgs"], False),
    ],
)
async def test_a_job_may_name_only_a_group_that_its_owner_shows(world: World, fqans: list[str], held: bool) -> None:
    credential = (await world.credential(fqans=fqans))["credential_id"]
    body = {"jobs": [spec("plain"), spec("grouped", working_group="higgs")], "credential_id": credential}
    if held:
        await world.submit(**body)
        (job,) = await (await world.pilot()).acquire()
        assert job
        return
    with pytest.raises(AssertionError, match="does not show"):
        await world.submit(**body)
    assert await world.sql("SELECT FROM panda_job") == []
    refusals = [row for row in await world.good("GET", "/v1/creds/audit") if row["action"] == "refused"]
    assert len(refusals) == 1
    assert "'higgs'" in refusals[0]["detail"]
    await world.submit(credential_id=credential)


async def test_a_later_credential_must_show_the_group_too(world: World) -> None:
    task = await waiting(world, "alice", "/atlas/higgs", 2, group="higgs")
    plain = await world.credential(fqans=["/atlas"])
    jobs = [spec(f"job-{i}", working_group="higgs") for i in range(2)]
    (row,) = await world.sql("SELECT task_key FROM panda_task")
    with pytest.raises(AssertionError, match="does not show"):
        await world.submit(
            key=row["task_key"], jobs=jobs, credential_id=plain["credential_id"],
            ti={"dag_id": "a", "run_id": "b", "task_id": "c", "try_number": 2},
        )  # fmt: skip
    assert (await world.job(task["first_panda_id"]))["status"] == "activated"
    (row,) = await world.sql("SELECT count(*) FROM panda_job WHERE credential_id = $1", plain["credential_id"])
    assert row["count"] == 0


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_sets_shows_and_ends(
    job_database: Database, pki: Pki, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_gateway(job_database, pki, tmp_path / "gateway") as gateway:
        (tmp_path / "token").write_text(gateway.client_token("ops"))
        there = ["--dispatcher", gateway.url, "--token-file", str(tmp_path / "token"), "--ca-file", str(pki.ca_dir)]

        def share(*arguments: str) -> tuple[int, str]:
            code = main(["share", arguments[0], *there, *arguments[1:]])
            shown = capsys.readouterr()
            return code, shown.out + shown.err

        code, text = share("set", "owner", "alice", "--weight", "2", "--max-cores", "64", "--priority-offset", "-50")
        assert code == 0, text
        assert text.startswith("owner alice: weight 2, priority -50, at most 64 cores (by client:ops at 20")
        assert share("set", "working_group", "", "--weight", "0.5")[0] == 0
        code, text = share("list")
        assert (code, len(text.splitlines())) == (0, 2)
        assert "working_group (none): weight 0.5" in text
        code, text = share("set", "vo", "atlas", "--priority-offset", "3")
        assert (code, "priorities are an owner's" in text, "Traceback" in text) == (1, True, False)
        code, text = share("set", "owner", "alice", "--weight", "0", "--max-jobs", "-1")
        assert (code, "weight: Input should be greater than 0; max_jobs: Input should" in text) == (1, True)
        assert share("end", "owner", "alice")[0] == 0
        code, text = share("end", "owner", "alice")
        assert (code, "no share is set" in text) == (1, True)
    help_text = subprocess.run(
        [sys.executable, "-m", "airpanda", "share", "--help"], capture_output=True, text=True, check=True, timeout=60,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "plugins"), "PATH": "/usr/bin:/bin"},
    ).stdout  # fmt: skip
    assert "who may have no more" in help_text
