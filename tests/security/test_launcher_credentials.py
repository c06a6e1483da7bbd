"""Attacks with credentials and files: what the launcher must refuse before anything runs (rows 1 to 18)."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from support.launcher import ALICE_UID, HOME, OTHER_UID, PILOT_UID, POOL, Ran, Site
from support.launcher_mappings import AUTHORISED, BAN_FILE, MAPPINGS, POOL_DIRECTORY, ban, mapped_site
from support.need import need_program

from airpanda.x509.certificates import INHERIT_ALL, LIMITED, PROXY_CERT_INFO, ProxyCertInfo
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.pem import certificates_pem, key_pem
from airpanda.x509.proxy import create_proxy
from airpanda_demo.pki import make_pki
from airpanda_demo.worker_node import GRID_SECURITY, PREFIX, render_mapfile

pytestmark = [pytest.mark.root, pytest.mark.integration]

CONFIG = PREFIX / "etc" / "glexec.conf"
INDEPENDENT_DER = bytes.fromhex("300c300a06082b06010505071502")


@pytest.fixture(scope="module", name="site", params=MAPPINGS)
def node_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from mapped_site(request.param)


def need_accounts(site: Site) -> None:
    if site.mapping == "dynamic":
        pytest.skip("about accounts, which a site with dynamic uids has not")


def refused(ran: Ran, code: int) -> None:
    """The launcher's own code, a reason, and nothing of a payload or of a key in it."""
    assert ran.code == code, ran
    assert ran.out == ""
    assert ran.err.startswith("glexec: ")
    assert "PRIVATE" not in ran.err


# --- row 1 to 5: the file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", "home/pilot/proxy"])
def test_no_absolute_path(site: Site, value: str | None) -> None:
    env = {} if value is None else {"GLEXEC_CLIENT_CERT": value}
    refused(site.run(site.glexec, "/usr/bin/id", env=env), 201)


def test_missing_directory_fifo_device(site: Site) -> None:
    fifo = HOME / "fifo"
    os.mkfifo(site.node.path(fifo), 0o600)
    os.chown(site.node.path(fifo), PILOT_UID, PILOT_UID)
    for path in (HOME / "missing", site.directory(), fifo, Path("/dev/null")):
        refused(site.glexec_run("/usr/bin/id", proxy=path), 201)


def test_symlink_and_second_link(site: Site) -> None:
    proxy = site.put_proxy()
    link, second = HOME / "link", HOME / "second"
    os.symlink(proxy, site.node.path(link))
    refused(site.glexec_run("/usr/bin/id", proxy=link), 201)
    os.link(site.node.path(proxy), site.node.path(second))
    refused(site.glexec_run("/usr/bin/id", proxy=proxy), 201)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o4600, 0o2600, 0o1600])
def test_open_modes(site: Site, mode: int) -> None:
    proxy = site.put(site.proxy().to_pem().reveal(), mode=mode)
    refused(site.glexec_run("/usr/bin/id", proxy=proxy), 201)


def test_file_of_somebody_else(site: Site) -> None:
    refused(site.glexec_run("/usr/bin/id", proxy=site.put(site.proxy().to_pem().reveal(), uid=ALICE_UID)), 201)
    refused(site.glexec_run("/usr/bin/id", proxy=site.put(site.proxy().to_pem().reveal(), uid=0, mode=0o644)), 201)
    ran = site.glexec_run("/usr/bin/id", proxy="/etc/shadow")
    refused(ran, 201)
    assert "root:" not in ran.err


def test_a_proxy_that_is_being_written_is_waited_for_and_not_for_ever(site: Site) -> None:
    """By who locks it meanwhile, as gLExec's contract has it."""
    proxy = site.put_proxy()
    with site.node.path(proxy).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ran = site.glexec_run("/usr/bin/id", proxy=proxy)
        refused(ran, 201)
        assert "stays locked" in ran.err
        soon = threading.Timer(0.3, fcntl.flock, (file, fcntl.LOCK_UN))
        soon.start()
        begin = time.monotonic()
        assert site.glexec_run("/usr/bin/id", "-u", proxy=proxy).out == f"{ALICE_UID}\n"
        assert time.monotonic() - begin > 0.1
        soon.join()


# --- row 6 to 9: the content ----------------------------------------------------------------------------------------


def test_content_that_is_no_proxy(site: Site) -> None:
    whole = site.proxy().to_pem().reveal()
    for data in (b"", b"x" * 200_000, whole + b"\0", b"garbage\n", whole[: len(whole) // 2], whole[:-40]):
        refused(site.glexec_run("/usr/bin/id", proxy=site.put(data)), 201)


def test_keys_and_certificates_that_do_not_belong_together(site: Site) -> None:
    alice, other = site.proxy(), site.proxy()
    chain = certificates_pem(alice.certificates)
    for data in (
        chain,
        certificates_pem([alice.certificate]) + key_pem(other.private_key) + certificates_pem(alice.chain),
        alice.to_pem().reveal() + key_pem(other.private_key),
        alice.to_pem().reveal() + key_pem(alice.private_key),
    ):
        refused(site.glexec_run("/usr/bin/id", proxy=site.put(data)), 201)


def test_no_proxy_level(site: Site) -> None:
    refused(site.glexec_run("/usr/bin/id", proxy=site.put(site.credential("alice").to_pem().reveal())), 201)


def test_more_than_one_chain(site: Site) -> None:
    alice, bob = site.proxy("alice"), site.proxy("bob")
    leaf = certificates_pem([alice.certificate]) + key_pem(alice.private_key)
    for data in (
        alice.to_pem().reveal() + certificates_pem(bob.certificates),
        certificates_pem(bob.certificates) + alice.to_pem().reveal(),
        leaf + certificates_pem(bob.chain),
        leaf + certificates_pem([*bob.chain, *alice.chain]),
        alice.to_pem().reveal() + b"and some text\n",
    ):
        refused(site.glexec_run("/usr/bin/id", proxy=site.put(data)), 201)


def test_a_chain_that_ends_before_its_end_entity_or_repeats(site: Site) -> None:
    alice = site.proxy()
    leaf = certificates_pem([alice.certificate]) + key_pem(alice.private_key)
    refused(site.glexec_run("/usr/bin/id", proxy=site.put(leaf)), 201)
    refused(site.glexec_run("/usr/bin/id", proxy=site.put(leaf + certificates_pem(alice.chain * 20))), 201)


def test_a_proxy_signed_by_a_key_that_is_not_its_issuers(site: Site) -> None:
    """The issuer's name is right, the signature is the attacker's."""
    alice, mallory = site.credential("alice"), site.credential("bob")
    forged = make_proxy(ProxyCredential(mallory.certificate, mallory.private_key), names=alice)
    data = certificates_pem([forged.certificate]) + key_pem(forged.private_key) + certificates_pem([alice.certificate])
    refused(site.glexec_run("/usr/bin/id", proxy=site.put(data)), 201)


def test_the_proxy_and_its_ca_in_one_file_is_good(site: Site) -> None:
    ca = x509.load_pem_x509_certificate(site.pki.ca.cert.read_bytes())
    data = site.proxy().to_pem().reveal() + certificates_pem([ca])
    assert site.glexec_run("/usr/bin/id", "-u", proxy=site.put(data)).out == f"{ALICE_UID}\n"


# --- row 10 to 14: the credential's policy --------------------------------------------------------------------------


def make_proxy(
    issuer: ProxyCredential,
    *,
    names: ProxyCredential | None = None,
    start: timedelta = timedelta(minutes=-5),
    end: timedelta = timedelta(hours=1),
    info: bytes | None = None,
    bits: int = 2048,
    common_name: str = "4711",
) -> ProxyCredential:
    """A proxy with anything in it that an honest program would not put there."""
    key = rsa.generate_private_key(65537, bits)
    subject = (names or issuer).certificate.subject
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([*subject, x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(4711)
        .not_valid_before(now + start)
        .not_valid_after(now + end)
    )
    if info != b"":
        value = info or ProxyCertInfo(INHERIT_ALL).to_der()
        builder = builder.add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, value), critical=True)
    certificate = builder.sign(issuer.private_key, hashes.SHA256())
    return ProxyCredential(certificate, key, (issuer.certificate,))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"start": timedelta(hours=-3), "end": timedelta(minutes=-1)}, 203),
        ({"start": timedelta(hours=1), "end": timedelta(hours=2)}, 203),
        ({"end": timedelta(hours=25)}, 203),
        ({"info": ProxyCertInfo(LIMITED).to_der()}, 203),
        ({"info": INDEPENDENT_DER}, 203),
        ({"info": b"", "common_name": "proxy"}, 201),
        ({"bits": 1024}, 203),
    ],
    ids=["expired", "not yet valid", "too long", "limited", "independent", "GT2", "1024 bits"],
)
def test_proxies_that_policy_refuses(site: Site, change: dict[str, object], code: int) -> None:
    forged = make_proxy(site.credential("alice"), **change)  # type: ignore[arg-type]
    refused(site.glexec_run("/usr/bin/id", proxy=site.put(forged.to_pem().reveal())), code)


def test_sha1_signature(site: Site, tmp_path: Path) -> None:
    """``cryptography`` no longer signs with SHA-1; OpenSSL does."""
    openssl = need_program("openssl", "openssl")
    good, issuer = make_proxy(site.credential("alice")), site.pki.user("alice")
    (tmp_path / "key").write_bytes(key_pem(good.private_key))
    (tmp_path / "ext").write_text(f"1.3.6.1.5.5.7.1.14=critical,DER:{ProxyCertInfo(INHERIT_ALL).to_der().hex()}\n")
    request = [openssl, "req", "-new", "-key", tmp_path / "key", "-subj", "/O=Test Grid/CN=Alice Example/CN=4711"]
    subprocess.run([*request, "-out", tmp_path / "csr"], check=True, capture_output=True)
    sign = [openssl, "x509", "-req", "-sha1", "-in", tmp_path / "csr", "-CA", issuer.cert, "-CAkey", issuer.key]
    more = ["-set_serial", "4711", "-days", "1", "-extfile", tmp_path / "ext", "-out", tmp_path / "pem"]
    subprocess.run([*sign, *more], check=True, capture_output=True)
    data = (tmp_path / "pem").read_bytes() + key_pem(good.private_key) + certificates_pem(good.chain)
    ran = site.glexec_run("/usr/bin/id", proxy=site.put(data))
    refused(ran, 203)
    assert "sha1" in ran.err.lower()


def test_a_key_of_512_bits(site: Site, tmp_path: Path) -> None:
    """``cryptography`` makes none so short; OpenSSL does."""
    openssl, issuer = need_program("openssl", "openssl"), site.pki.user("alice")
    make = [openssl, "genrsa", "-traditional", "-out", tmp_path / "key", "512"]
    (tmp_path / "ext").write_text(f"1.3.6.1.5.5.7.1.14=critical,DER:{ProxyCertInfo(INHERIT_ALL).to_der().hex()}\n")
    request = [openssl, "req", "-new", "-key", tmp_path / "key", "-subj", "/O=Test Grid/CN=Alice Example/CN=4711"]
    sign = [openssl, "x509", "-req", "-sha256", "-in", tmp_path / "csr", "-CA", issuer.cert, "-CAkey", issuer.key]
    sign += ["-set_serial", "4711", "-days", "1", "-extfile", tmp_path / "ext", "-out", tmp_path / "pem"]
    for command in (make, [*request, "-out", tmp_path / "csr"], sign):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    data = (tmp_path / "pem").read_bytes() + (tmp_path / "key").read_bytes() + issuer.cert.read_bytes()
    refused(site.glexec_run("/usr/bin/id", proxy=site.put(data)), 203)


def test_a_proxy_of_a_proxy_is_good(site: Site) -> None:
    """As a delegation to a pilot makes it, and with another one on top."""
    proxy = site.proxy()
    for _ in range(2):
        proxy = create_proxy(proxy, lifetime=timedelta(hours=1), now=datetime.now(UTC))
        ran = site.glexec_run("/usr/bin/id", "-u", proxy=site.put(proxy.to_pem().reveal()))
        assert ran.out == f"{ALICE_UID}\n", ran


def test_the_same_proxy_without_a_fault_is_good(site: Site) -> None:
    """The control of the test before."""
    good = make_proxy(site.credential("alice"))
    assert site.glexec_run("/usr/bin/id", "-u", proxy=site.put(good.to_pem().reveal())).out == f"{ALICE_UID}\n"


def test_rogue_ca_with_the_same_subject(site: Site, tmp_path: Path) -> None:
    rogue = make_pki(tmp_path / "rogue", users={"alice": "Alice Example"})
    forged = make_proxy(ProxyCredential.from_files(*rogue.user("alice")))
    assert forged.identity == site.pki.dn("alice")
    refused(site.glexec_run("/usr/bin/id", proxy=site.put(forged.to_pem().reveal())), 203)


def certificates_of(site: Site) -> Path:
    return site.node.path(GRID_SECURITY / "certificates")


def copy_ca_dir(site: Site) -> None:
    """The node's CA directory as the PKI now has it."""
    for old in certificates_of(site).iterdir():
        old.unlink()
    for new in site.pki.ca_dir.iterdir():
        shutil.copyfile(new, certificates_of(site) / new.name)


def test_revoked_and_stale_crl(site: Site) -> None:
    proxy = site.put_proxy()
    try:
        site.pki.write_crl("bob")
        copy_ca_dir(site)
        assert site.glexec_run("/usr/bin/id", proxy=proxy).code == 0
        site.pki.write_crl("alice")
        copy_ca_dir(site)
        refused(site.glexec_run("/usr/bin/id", proxy=proxy), 203)
        site.pki.write_crl("bob", lifetime=timedelta(hours=-1))
        copy_ca_dir(site)
        refused(site.glexec_run("/usr/bin/id", proxy=proxy), 203)
    finally:
        site.pki.remove_crl()
        copy_ca_dir(site)


def set_option(site: Site, name: str, value: str | None) -> None:
    """Set (or with None unset) one option of the node's launcher."""
    path = site.node.path(CONFIG)
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{name} =")]
    path.write_text("\n".join([*lines, *([f"{name} = {value}"] if value is not None else [])]) + "\n")


def test_missing_crl_where_the_site_demands_one(site: Site) -> None:
    set_option(site, "require_crl", "yes")
    try:
        refused(site.glexec_run("/usr/bin/id"), 203)
    finally:
        set_option(site, "require_crl", None)


def test_dn_outside_the_signing_policy(site: Site) -> None:
    policies = list(certificates_of(site).glob("*.signing_policy"))
    texts = [path.read_text() for path in policies]
    try:
        for path, text in zip(policies, texts, strict=True):
            path.write_text(text.replace("/O=Test Grid/*", "/O=Other Grid/*"))
        refused(site.glexec_run("/usr/bin/id"), 203)
    finally:
        for path, text in zip(policies, texts, strict=True):
            path.write_text(text)


# --- row 15 to 17: mapping ------------------------------------------------------------------------------------------


@pytest.fixture(name="remap")
def restored_mapfile(site: Site) -> Iterator[Site]:
    """The mapfile may be changed; it is restored after the test."""
    need_accounts(site)
    yield site
    site.node.set_mapfile(site.mapfile)


def test_unmapped(site: Site) -> None:
    refused(site.glexec_run("/usr/bin/id", proxy=site.put_proxy("carol")), 203)


def test_a_dn_is_compared_whole_and_never_as_a_pattern(remap: Site) -> None:
    dn = remap.pki.dn("alice")
    for other in (dn[:-1], dn + "x", dn.upper(), dn.replace("Alice", "Al?ce"), dn + "/CN=4711"):
        remap.node.set_mapfile({other: "alice"})
        refused(remap.glexec_run("/usr/bin/id"), 203)
    if remap.mapping == "lcmaps":
        return  # its plug-in takes no "*" in the middle of a name
    remap.node.set_mapfile({dn[:-3] + "*": "alice"})
    assert remap.glexec_run("/usr/bin/id", "-u").out == f"{ALICE_UID}\n"


@pytest.mark.parametrize("account", ["root", "low", "system", "pilot", "nobody-here"])
def test_mapped_to_what_no_payload_may_be(remap: Site, account: str) -> None:
    remap.node.set_mapfile({remap.pki.dn("alice"): account})
    refused(remap.glexec_run("/usr/bin/id"), 203)


@pytest.mark.parametrize("callers", ["pilot robot", "pilot %robot", "pilot nobody-here robot"])
def test_mapped_to_another_caller(remap: Site, callers: str) -> None:
    """Such a payload could read another pilot's proxies, and start anybody's payloads."""
    remap.node.set_mapfile({remap.pki.dn("alice"): "robot"})
    assert remap.glexec_run("/usr/bin/id", "-un").out == "robot\n"
    before = remap.read(CONFIG)
    set_option(remap, "callers", callers)
    try:
        ran = remap.glexec_run("/usr/bin/id")
        refused(ran, 203)
        assert "one of the launcher's callers" in ran.err
    finally:
        remap.node.path(CONFIG).write_text(before)


def test_mapped_to_the_account_of_lcmaps(remap: Site) -> None:
    """It owns the leases: a payload under it could take anybody's."""
    remap.node.set_mapfile({remap.pki.dn("alice"): "mapper"})
    ran = remap.glexec_run("/usr/bin/id", "-un")
    if remap.mapping == "lcmaps":
        refused(ran, 203)
    else:
        assert ran.out == "mapper\n"


def test_banned(site: Site) -> None:
    try:
        ban(site, "alice")
        refused(site.glexec_run("/usr/bin/id"), 203)
        assert site.glexec_run("/usr/bin/id", proxy=site.put_proxy("bob")).code == 0
        if site.mapping != "lcmaps":  # its own plug-in reads it otherwise
            site.node.path(BAN_FILE).write_text("no name at all\n")
            refused(site.glexec_run("/usr/bin/id", proxy=site.put_proxy("bob")), 202)
    finally:
        ban(site)


def test_pool_accounts_are_leased_once_and_run_out(remap: Site) -> None:
    people = ["carol", "dave", "erin"]
    remap.node.set_mapfile({remap.pki.dn(name): ".dt" for name in people})
    first = [remap.glexec_run("/usr/bin/id", "-un", proxy=remap.put_proxy(name)) for name in people]
    assert sorted(ran.out for ran in first) == ["", "dt001\n", "dt002\n"]
    refused(first[2], 203)
    again = remap.glexec_run("/usr/bin/id", "-un", proxy=remap.put_proxy("dave"))
    assert again.out == first[1].out
    assert remap.last_record()["lease"] == "%2fo%3dtest%20grid%2fcn%3ddave"
    gridmapdir = remap.node.path(POOL_DIRECTORY[remap.mapping])
    assert [(gridmapdir / name).stat().st_nlink for name in POOL] == [2, 2]


def test_a_lease_is_not_shared_with_a_name_that_only_looks_the_same(remap: Site) -> None:
    """Lease names are lower case: /CN=dave and /CN=DAVE would be one account."""
    remap.node.set_mapfile({remap.pki.dn("dave"): ".dt", remap.pki.dn("DAVE"): ".dt"})
    assert remap.glexec_run("/usr/bin/id", proxy=remap.put_proxy("dave")).code == 0
    refused(remap.glexec_run("/usr/bin/id", proxy=remap.put_proxy("DAVE")), 203)


def test_callers_who_are_not_listed(site: Site) -> None:
    proxy = site.put(site.proxy().to_pem().reveal(), uid=OTHER_UID, where=Path("/home/other"))
    refused(site.glexec_run("/usr/bin/id", proxy=proxy, account="other"), 203)
    proxy = site.put(site.proxy().to_pem().reveal(), uid=0, where=Path("/var/tmp"))
    command = [*site.node.root_argv(), f"GLEXEC_CLIENT_CERT={proxy}", site.glexec, "/usr/bin/id"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    refused(Ran(done.returncode, done.stdout, done.stderr), 203)


# --- row 18: the site's files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        CONFIG,
        CONFIG.parent,
        PREFIX,
        GRID_SECURITY / "grid-mapfile",
        GRID_SECURITY / "certificates",
        GRID_SECURITY,
        PREFIX / "log",
        BAN_FILE,
    ],
    ids=str,
)
@pytest.mark.parametrize("fault", ["group-writable", "world-writable", "foreign"])
def test_site_files_that_others_could_change(site: Site, path: Path, fault: str) -> None:
    if site.mapping == "dynamic" and path.name == "grid-mapfile":
        path = AUTHORISED  # what decides there
    if site.mapping == "lcmaps" and path == BAN_FILE:
        pytest.skip("LCMAPS reads it here, and opens it whatever its mode; the next test is about ours")
    outside = site.node.path(path)
    status = outside.stat()
    try:
        if fault == "foreign":
            os.chown(outside, PILOT_UID, -1)
        else:
            outside.chmod(status.st_mode | (0o020 if fault == "group-writable" else 0o002))
        refused(site.glexec_run("/usr/bin/id"), 202)
    finally:
        os.chown(outside, 0, 0)
        outside.chmod(status.st_mode & 0o7777)
    assert site.glexec_run("/usr/bin/id").code == 0


def test_a_pool_directory_that_others_could_change(remap: Site) -> None:
    remap.node.set_mapfile({remap.pki.dn("alice"): ".dt"})
    pool = remap.node.path(POOL_DIRECTORY[remap.mapping])
    owner, mode = pool.stat().st_uid, pool.stat().st_mode & 0o7777
    for uid, bits in ((owner, mode | 0o020), (owner, mode | 0o002), (ALICE_UID, mode), (PILOT_UID, mode)):
        os.chown(pool, uid, -1)
        pool.chmod(bits)
        try:
            refused(remap.glexec_run("/usr/bin/id"), 202)
        finally:
            os.chown(pool, owner, -1)
            pool.chmod(mode)


def test_a_trust_anchor_that_others_could_change(site: Site) -> None:
    anchor = next(certificates_of(site).glob("*.0"))
    anchor.chmod(0o666)
    try:
        refused(site.glexec_run("/usr/bin/id"), 202)
    finally:
        anchor.chmod(0o644)


@pytest.mark.parametrize(
    "text",
    [None, "", "[glexec]\n", "nonsense", "{whole}\n[extra]\na = b\n", "{whole}\nhidee = /x\n", "{whole}\n[glexec]\n"],
)
def test_configuration_missing_or_malformed(site: Site, text: str | None) -> None:
    path = site.node.path(CONFIG)
    whole = path.read_text()
    try:
        if text is None:
            path.unlink()
        else:
            path.write_text(text.replace("{whole}", whole))
        refused(site.glexec_run("/usr/bin/id"), 202)
    finally:
        path.write_text(whole)
        path.chmod(0o640)


def test_mapfile_missing_or_malformed(remap: Site) -> None:
    path = remap.node.path(GRID_SECURITY / "grid-mapfile")
    if remap.mapping == "own":  # LCMAPS reads until a line fits
        for text in ('"/CN=no account"\n', f'{render_mapfile(remap.mapfile)}"/CN=x y\n'):
            path.write_text(text)
            refused(remap.glexec_run("/usr/bin/id"), 202)
    path.unlink()
    refused(remap.glexec_run("/usr/bin/id"), 202)
