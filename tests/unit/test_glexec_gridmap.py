"""grid-mapfile, ban file, lease names: files that must be refused whole, then what maps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.core.errors import ConfigurationError
from airpanda.glexec.gridmap import (
    Target,
    find,
    is_banned,
    is_listed,
    lease_name,
    parse_banfile,
    parse_gridmap,
    pool_members,
)

ALICE = "/DC=test/O=GLX/CN=Alice Analyst"


@pytest.mark.parametrize(
    "line",
    [
        '"/CN=x"',
        '"/CN=x" ',
        '"/CN=x" a b',
        '"/CN=x y',
        "/CN=x y z",
        '"CN=x" account',
        '"" account',
        '"/CN=*x" account',
        '"/CN=x" ../account',
        '"/CN=x" ro ot',
        '"/CN=x" -account',
        '"/CN=x" ..dt',
        '"/CN=x" a/b',
        "account",
        '"/CN=x\\" account" b c',
    ],
)
def test_a_line_that_cannot_be_read_refuses_the_file(line: str) -> None:
    with pytest.raises(ConfigurationError, match="map, line 3"):
        parse_gridmap(f'# comment\n"{ALICE}" alice\n{line}\n', where="map")


def test_a_ban_that_cannot_be_read_refuses_the_file() -> None:
    with pytest.raises(ConfigurationError, match="ban, line 2"):
        parse_banfile(f'"{ALICE}"\nnot a name\n', where="ban")


def test_first_line_and_first_account_win() -> None:
    lines = parse_gridmap(f'"{ALICE}" a1,a2\n"{ALICE}" b\n"/DC=test/*" .pool\n', where="map")
    assert find(lines, ALICE) == Target("a1")
    assert find(lines, "/DC=test/CN=x") == Target("pool", pool=True)
    assert find(lines, "/DC=tes") is None


@pytest.mark.parametrize("other", [ALICE[:-1], ALICE + " ", ALICE + "/CN=1", ALICE.lower(), "/CN=Alice Analyst", ""])
def test_names_are_compared_whole(other: str) -> None:
    assert find(parse_gridmap(f'"{ALICE}" alice\n', where="map"), other) is None


def test_fqans_need_their_capability_or_a_star() -> None:
    lines = parse_gridmap('"/atlas/Role=production" p\n"/atlas/*" .a\n', where="map")
    assert find(lines, "/atlas/Role=production/Capability=NULL") == Target("a", pool=True)


def test_bans_match_any_name_of_a_credential() -> None:
    bans = parse_banfile('"/atlas/Role=bad/*"\n"/CN=Mallory" yes\n', where="ban")
    assert is_banned(bans, [ALICE, "/atlas/Role=bad/Capability=NULL"])
    assert is_banned(bans, ["/CN=Mallory"])
    assert not is_banned(bans, [ALICE, "/atlas/Role=NULL/Capability=NULL"])
    assert not is_banned([], [ALICE])


@pytest.mark.parametrize("banned", ["/O=x/Email=m@x.example", "/O=x/E=m@x.example", "/O=x/emailAddress=m@*"])
def test_a_ban_is_not_lost_by_an_older_name_of_an_attribute(banned: str) -> None:
    assert is_banned(parse_banfile(f'"{banned}"\n', where="ban"), ["/O=x/emailAddress=m@x.example"])
    assert is_banned(parse_banfile('"/O=x/USERID=m"\n', where="ban"), ["/O=x/UID=m"])
    assert not is_banned(parse_banfile(f'"{banned}"\n', where="ban"), ["/O=x/emailAddress=n@x.example"])


def test_a_permission_is_meant_to_the_letter() -> None:
    assert is_listed(["/O=x/*"], ["/O=x/CN=a"])
    assert not is_listed(["/O=x/Email=m"], ["/O=x/emailAddress=m"])


def test_lease_names_are_those_of_lcmaps() -> None:
    """Measured with LCMAPS 1.6.6 on Debian 12."""
    wanted = "%2fdc%3dtest%2fo%3dglx%2fcn%3da%2dm%20o%27n%20%28x%29%20a%5fb%2ec%3ad"
    assert lease_name("/DC=test/O=GLX/CN=A-m O'N (x) a_b.c:d") == wanted
    assert lease_name("\\xC3\\xB6") == "%5cxc3%5cxb6"


@given(st.text(min_size=1))
def test_lease_names_are_plain_file_names(dn: str) -> None:
    name = lease_name("/CN=" + dn.encode("utf-8", "replace").decode())
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789%")


def test_pool_members_are_the_prefix_and_digits() -> None:
    names = ["dt002", "dt001", "dtx1", "dt", "dt1a", "adt001", "%2fcn%3ddt001", ".airpanda-owners"]
    assert pool_members(names, "dt") == ["dt001", "dt002"]
    assert pool_members(["d.1", "dx1"], "d.") == ["d.1"]
