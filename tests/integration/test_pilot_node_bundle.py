"""A pilot from a bundle on a real node: MyProxy caps lifetimes, so it renews through the launcher during a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from support.fake_dispatcher import TOKEN, fake_dispatcher, make_job
from support.launcher import ALICE_UID, PILOT_UID, Site, make_site
from support.myproxy_server import CONFIG, ServerProcess, start_debian
from support.node_processes import processes_of
from support.pilot_chain import put_bundle

from airpanda import messages as m
from airpanda.myproxy.staging import stage
from airpanda.x509.credential import ProxyCredential
from airpanda_demo.worker_node import GRID_SECURITY

pytestmark = [pytest.mark.root, pytest.mark.integration]

WRAPPER = Path(__file__).resolve().parents[2] / "include/pilot/wrapper.sh"
# The server grants an hour; with this margin the first renewal is some 25 s after the start.
MARGIN_S = 1191
PAYLOAD = """
fingerprint() { cksum < "$X509_USER_PROXY"; }
first=$(fingerprint); n=0
while [ "$(fingerprint)" = "$first" ] && [ $n -lt 1200 ]; do sleep 0.1; n=$((n+1)); done
[ "$(fingerprint)" != "$first" ] && echo changed
stat -c '%a %u' "$X509_USER_PROXY"
grep -c 'BEGIN CERTIFICATE' "$X509_USER_PROXY"
"""


@pytest.fixture(scope="module", name="site")
def _site() -> Iterator[Site]:
    for site in make_site():
        site.node.set_mapfile({**site.mapfile, site.pki.dn("pilot"): "other"})
        yield site


@pytest.fixture(name="myproxy")
def _myproxy(site: Site) -> Iterator[ServerProcess]:
    config = CONFIG.replace("cert_dir {certs}\n", "").replace("max_proxy_lifetime 168", "max_proxy_lifetime 1")
    with start_debian(site.pki, config) as server:
        yield server


def alices_job(site: Site, myproxy: ServerProcess) -> m.AcquiredJob:
    owner = ProxyCredential.from_files(*site.pki.user("alice"))
    staged = stage(myproxy.client("alice"), owner, retriever_dn=site.pki.dn("pilot"), lifetime=timedelta(hours=5))
    job = make_job(
        1, owner_dn=site.pki.dn("alice"), argv=["sh", "run.sh"], scripts={"run.sh": PAYLOAD}, walltime_s=7200
    )
    pointer = job.credential.model_copy(
        update={
            "server": staged.server,
            "username": staged.username,
            "cred_name": staged.cred_name,
            "passphrase": m.SecretStr(staged.passphrase.reveal()),
        }
    )
    return job.model_copy(update={"credential": pointer})


def test_the_payloads_proxy_is_renewed_through_the_launcher(site: Site, myproxy: ServerProcess, tmp_path: Path) -> None:
    place = site.directory(where=site.directory(mode=0o711))
    with fake_dispatcher() as fake:
        fake.jobs = [alices_job(site, myproxy)]
        values = {
            "pilot_id": 1,
            "tag": "t",
            "token": TOKEN,
            "queue": "NODE",
            "dispatcher_url": fake.url,
            "ca_dir": str(GRID_SECURITY / "certificates"),
            "proxy": str(site.put_proxy("pilot")),
            "glexec": site.glexec,
            "identity_policy": "REQUIRED",
            "slot": {"cores": 1, "memory_mib": 2000, "disk_mib": 1000, "walltime_s": 9000},
            "idle_limit_s": 1,
            "benchmark_s": 0,
            "proxy_margin_s": MARGIN_S,
        }
        config = place / "pilot.json"
        outside = site.node.path(config)
        outside.touch(mode=0o600)
        outside.write_text(json.dumps(values))
        os.chown(outside, PILOT_UID, PILOT_UID)
        wrapper = site.put(WRAPPER.read_bytes())
        argv = ["sh", str(wrapper), "--code", str(put_bundle(site, tmp_path)), "--python", sys.executable, str(config)]
        done = subprocess.run(site.argv(*argv), capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        assert fake.errors == []
    assert fake.statuses == ["starting", "running", "finished"], done.stderr
    assert fake.files["1/1/payload.log"].decode().splitlines()[:2] == ["changed", f"600 {ALICE_UID}"]
    events = [report.credential_event for report in fake.reports if report.credential_event]
    assert events == ["retrieved", "renewed"], done.stderr
    assert fake.final.account_uid == ALICE_UID
    assert processes_of(site, ALICE_UID) == []
    assert [path.name for path in site.node.path(place).iterdir() if not path.name.startswith("code-")] == []
