"""A launcher's record that lacks something, or is about somebody else, is none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.pki import Pki

from airpanda.core.errors import IdentitySwitchError
from airpanda.core.secret import Secret
from airpanda.glexec.told import read_record
from airpanda.x509.certificates import fingerprint
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module", name="proxies")
def _proxies(pki: Pki) -> dict[str, ProxyCredential]:
    now, hours = datetime.now(UTC), timedelta(hours=1)
    owners = {who: ProxyCredential.from_files(*pki.user(who)) for who in ("alice", "bob")}
    made = {who: create_proxy(owner, lifetime=hours, now=now) for who, owner in owners.items()}
    return {**made, "renewed": create_proxy(owners["alice"], lifetime=hours, now=now)}


def started(proxy: ProxyCredential, **changes: Any) -> dict[str, Any]:
    """As a launcher of ours writes it."""
    whole = {
        "event": "started",
        "pid": 7,
        "uid": 1001,
        "dn": proxy.identity,
        "fqans": ["/atlas/Role=NULL/Capability=NULL"],
        "issuer": "/CN=CA",
        "serial": "1f",
        "fingerprint": fingerprint(proxy.certificate),
        "lease": None,
        "launcher": "sudo",
        "mapping": "lcmaps",
    }
    return {name: value for name, value in {**whole, **changes}.items() if value != "absent"}


def test_a_whole_record_is_taken(proxies: dict[str, ProxyCredential]) -> None:
    record = read_record(started(proxies["alice"], lease="%2fcn\n"), [proxies["alice"].to_pem()])
    assert (record.dn, record.launcher, record.mapping) == (proxies["alice"].identity, "sudo", "lcmaps")
    assert (record.fqans, record.lease) == (("/atlas/Role=NULL/Capability=NULL",), "%2fcn\n")
    assert len(read_record(started(proxies["alice"], fqans=["/a"] * 99), [proxies["alice"].to_pem()]).fqans) == 64


def test_a_renewal_meanwhile_is_no_other_credential(proxies: dict[str, ProxyCredential]) -> None:
    both = [proxies["alice"].to_pem(), proxies["renewed"].to_pem()]
    for name in ("alice", "renewed"):
        assert read_record(started(proxies[name]), both).fingerprint == fingerprint(proxies[name].certificate)


@pytest.mark.parametrize("name", ["dn", "issuer", "serial", "fingerprint", "launcher", "mapping", "fqans"])
@pytest.mark.parametrize("value", ["absent", None, "", 7, {}])
def test_what_is_missing_or_of_no_use(proxies: dict[str, ProxyCredential], name: str, value: object) -> None:
    with pytest.raises(IdentitySwitchError, match=name) as caught:
        read_record(started(proxies["alice"], **{name: value}), [proxies["alice"].to_pem()])
    assert caught.value.exit_code == 202


@pytest.mark.parametrize(
    "changes", [{"dn": "/CN=else"}, {"fingerprint": "0" * 64}, {"launcher": "glexec"}, {"lease": 7}, {"fqans": "/a"}]
)
def test_what_is_not_about_this_proxy_or_not_ours(
    proxies: dict[str, ProxyCredential], changes: dict[str, object]
) -> None:
    with pytest.raises(IdentitySwitchError):
        read_record(started(proxies["alice"], **changes), [proxies["alice"].to_pem()])


def test_another_persons_and_garbage(proxies: dict[str, ProxyCredential], tmp_path: Path) -> None:
    for given in (proxies["bob"].to_pem(), Secret(b""), Secret(b"nonsense")):
        with pytest.raises(IdentitySwitchError):
            read_record(started(proxies["alice"]), [given])
