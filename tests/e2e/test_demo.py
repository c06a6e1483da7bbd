"""`make demo` as root: real physics as three people on one node, and what somebody sees who does not trust it."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.demo import BASE, Demo, Inside, ProcessWatch, User, make_home, own_python, running
from support.need import need_root

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(2700)]

REACH = Path(__file__).parents[1] / "support" / "reach.py"
JOB_FIELDS = {
    "panda_id", "dag_id", "task_id", "owner_dn", "queue", "status", "attempt_nr", "pilot_uid", "account_uid",
    "account_name", "identity_switched", "wall_s", "cpu_s",
}  # fmt: skip


@pytest.fixture(scope="module", name="home")
def checkout_under_a_closed_home() -> Iterator[Path]:
    home = Path(f"{BASE}-home of root")
    shutil.rmtree(home, ignore_errors=True)
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module", name="watch")
def process_watch() -> Iterator[ProcessWatch]:
    with ProcessWatch() as watch:
        yield watch


@pytest.fixture(scope="module", name="demo")
def shared_demo(home: Path, watch: ProcessWatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    need_root()
    checkout = make_home(home)
    log = tmp_path_factory.mktemp("demo") / "output"
    with running(Demo.start("demo", User(home, own_python()), checkout, BASE, log)) as demo:
        demo.wait_until_ready()
        yield demo


@pytest.fixture(scope="module", name="inside")
def look_inside(demo: Demo) -> Inside:
    return Inside(demo.directory, json.loads((demo.directory / "ready.json").read_text()))


@pytest.fixture(scope="module", name="jobs")
def finished_jobs(inside: Inside) -> list[dict[str, Any]]:
    return [job for job in inside.report["jobs"] if job["status"] == "finished"]


def test_everything_is_as_promised(demo: Demo, inside: Inside) -> None:
    assert inside.ready["wrong"] == []
    assert "NOT AS PROMISED" not in demo.text
    assert "| ended" not in demo.text


def test_the_report_has_its_fields(inside: Inside) -> None:
    assert inside.report["elapsed_s"] > 0
    for job in inside.report["jobs"]:
        assert set(job) >= JOB_FIELDS
        assert all(job[name] is not None for name in JOB_FIELDS), job


def test_three_owners_ran_under_three_accounts(jobs: list[dict[str, Any]]) -> None:
    assert len(jobs) >= 23
    accounts = {(job["owner_dn"], job["account_uid"]) for job in jobs}
    assert {dn.rpartition("=")[2] for dn, _ in accounts} == {"Robot: production", "Alice Analyst", "Bob Analyst"}
    assert len(accounts) == len({uid for _, uid in accounts}) == 3
    assert {uid for _, uid in accounts}.isdisjoint({0} | {job["pilot_uid"] for job in jobs})
    assert all(job["identity_switched"] is True for job in jobs)
    assert 0 not in {job["pilot_uid"] for job in jobs}


def test_the_launchers_own_log_agrees(inside: Inside, jobs: list[dict[str, Any]]) -> None:
    seen = {record["id"]: record for record in inside.launcher_records() if record["identity_switched"]}
    for job in jobs:
        record = seen[f"PandaID={job['panda_id']} attempt={job['attempt_nr']}"]
        assert (record["dn"], record["uid"]) == (job["owner_dn"], job["account_uid"])
        assert record["caller_uid"] == job["pilot_uid"]
        assert (record["launcher"], record["mapping"]) == ("sudo", "lcmaps")


def test_payloads_came_by_sudo_and_lcmaps_and_sudos_log_agrees(
    demo: Demo, inside: Inside, jobs: list[dict[str, Any]]
) -> None:
    """CI has both installed. Each request that the launcher knows of was let through by sudo, and by nothing else."""
    assert {(job["launcher"], job["mapping"]) for job in jobs} == {("sudo", "lcmaps")}
    assert inside.report["launcher"] == {"launcher": "sudo", "mapping": "lcmaps"}
    assert f"of {len(inside.report['jobs'])} payloads: sudo+lcmaps {len(inside.report['jobs'])}" in demo.text
    assert "the launcher is started by sudo's rule, accounts come from the site's LCMAPS" in demo.text
    let_through = inside.node_path("/run/airpanda/log/sudo.log").read_text().splitlines()
    assert {line.split(" : ")[1].split()[0] for line in let_through} == {"pilot"}
    assert all("USER=root ; COMMAND=/run/airpanda/sbin/airpanda-launcher " in line for line in let_through)
    records = inside.launcher_records()
    assert {record["launcher"] for record in records} == {"sudo"}
    # One more where a launcher was killed before it could write.
    assert len(records) <= len(let_through) <= len(records) + 2
    assert not inside.node_path("/run/airpanda/launcher.socket").exists()


def test_who_used_alices_proxy_where_and_when(inside: Inside, jobs: list[dict[str, Any]]) -> None:
    """Exactly the uses that were made: one release and one retrieval for each of her attempts."""
    hers = [job for job in jobs if job["owner_dn"].endswith("CN=Alice Analyst")]
    rows = inside.audit(hers[0]["owner_dn"])
    attempts = {(job["panda_id"], job["attempt_nr"], job["pilot_id"]) for job in hers}
    for action in ("released", "retrieved"):
        uses = [row for row in rows if row["action"] == action]
        assert {(row["panda_id"], row["attempt_nr"], row["pilot_id"]) for row in uses} == attempts
        assert len(uses) == len(attempts)
        assert {row["node"] for row in uses} == {"wn1.airpanda.test"}
    staged = [row for row in rows if row["action"] == "staged"]
    assert len(staged) == 2, "one for each of her DAG runs"
    assert {row["owner_dn"] for row in rows} == {hers[0]["owner_dn"]}
    assert min(row["at"] for row in staged) == min(row["at"] for row in rows), "nothing before it was staged"


def test_the_z_is_where_it_should_be(inside: Inside) -> None:
    report = inside.report
    assert Path(report["picture"]).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert set(report["peaks"]) == {"alice", "bob"}
    for peak in report["peaks"].values():
        assert peak["mass_gev"] == pytest.approx(91, abs=1)
        assert 0 < peak["mass_error_gev"] < 0.2
        assert peak["fit_probability"] > 1e-4


def test_the_table_and_the_login_are_shown(demo: Demo, inside: Inside) -> None:
    for job in inside.report["jobs"]:
        shown = [line.split() for line in demo.text.splitlines() if line.startswith(f"{job['panda_id']} ")]
        assert f"{job['account_name']}({job['account_uid']})" in shown[0]
        assert "yes" in shown[0]
    assert inside.ready["url"] in demo.text
    assert Path(inside.ready["login_file"]).stat().st_mode & 0o777 == 0o600
    assert (demo.directory / "ready.json").stat().st_mode & 0o777 == 0o600
    with inside.api() as client:
        assert client.get("/api/v2/dags").status_code == 200


def test_servers_listen_on_loopback_only(inside: Inside) -> None:
    ports = {inside.gateway_port, int(inside.ready["url"].rpartition(":")[2])}
    other = socket.gethostbyname(socket.gethostname())
    for port in ports:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        if not other.startswith("127."):
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((other, port), timeout=5).close()


def test_a_payload_reaches_nothing_that_is_not_its_own(inside: Inside, home: Path) -> None:
    site, api = inside.directory, inside.ready["url"]
    gateway = f"https://localhost:{inside.gateway_port}"
    private = ["airflow", "airflow/airflow.cfg", "airflow/signing.pem", "airflow/passwords.json", "pg", "pg/data"]
    private += [
        "pg/socket",
        "pg/passwords.json",
        "pki",
        "myproxy",
        "myproxy/store",
        "files",
        "node",
        "node/enter",
        "logs",
    ]
    private += [str(path.relative_to(site)) for path in site.glob("pki/*.key")]
    private += [str(path.relative_to(site)) for path in site.glob("pki/*.proxy")]
    on_node = ["/var/tmp/pilots", "/home/pilot", "/home/pilot/pilot.proxy", "/home/robot", "/home/bob", "/etc/shadow"]
    on_node += [
        "/run/airpanda/log/glexec.jsonl",
        "/run/airpanda/log/sudo.log",
        "/proc/1/environ",
        "/proc/1/root",
        "/proc/1/fd",
        "/dev/mem",
    ]
    control = {"read targets.json", "run /bin/true", f"ask {gateway}/v1/health", f"ask {api}/api/v2/monitor/health"}
    targets = {
        "paths": [*(str(site / name) for name in private), *on_node, str(home), "targets.json"],
        "sockets": [str(site / "pg/socket/.s.PGSQL.5432"), "/mnt/socket/.s.PGSQL.5432"],
        # Anybody may ask the launcher or sudo; whom they obey is what counts.
        "commands": [
            ["/run/airpanda/sbin/glexec", "/usr/bin/id"],
            ["/run/airpanda/sbin/glexec-sudo", "/usr/bin/id"],
            ["/usr/bin/sudo", "-n", "/run/airpanda/sbin/airpanda-launcher", "/usr/bin/id"],
            ["/bin/true"],
        ],
        "writable": [
            "/",
            "/etc",
            "/usr",
            "/run",
            "/home",
            str(site / "software"),
            str(site / "code"),
            "/var/tmp/pilots",
        ],
        "urls": [
            *(f"{gateway}/v1/{what}" for what in ("health", "task/1/jobs", "job/1", "creds/1", "file/1/zmumu-1.npz")),
            *(f"{api}/panda/v1/{what}" for what in ("task/1/jobs", "creds/1", "creds/audit?owner_dn=x")),
            *(f"{api}/api/v2/{what}" for what in ("monitor/health", "dags", "connections", "variables", "config")),
        ],
    }
    conf = {
        "argv": ["python3", "reach.py"],
        "scripts": {"reach.py": REACH.read_text(), "targets.json": json.dumps(targets)},
        "outputs": ["reach.json"],
    }
    value = inside.run_dag("as_alice", conf)
    found = json.loads(inside.output(value["outputs"][0]["panda_id"], "reach.json"))
    assert found["uid"] == 61012
    assert found["tried"] > 60
    assert set(found["reached"]) == control


def test_what_the_node_hides_from_payloads_exists(inside: Inside) -> None:
    """The counterpart: those were not just wrong paths."""
    for name in (
        "airflow/airflow.cfg",
        "airflow/signing.pem",
        "pg/socket/.s.PGSQL.5432",
        "pki/ca.key",
        "myproxy/store",
    ):
        assert (inside.directory / name).exists(), name
    for name in ("/var/tmp/pilots", "/home/pilot/pilot.proxy", "/run/airpanda/log/sudo.log"):
        assert inside.node_path(name).exists(), name


def test_no_secret_shows_and_nothing_is_left(demo: Demo, inside: Inside, watch: ProcessWatch) -> None:
    """The last test of the shared run: it ends it."""
    secrets = inside.secrets()
    tables = {name: kinds for name, text in inside.tables().items() if (kinds := secrets.shown_in(text))}
    ports = [inside.gateway_port, int(inside.ready["url"].rpartition(":")[2])]
    assert demo.stop() in (143, -15, 2)
    assert demo.left() == []
    assert not (demo.directory / "ready.json").exists()
    for port in ports:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()

    assert tables == {}
    logs = [path for folder in ("logs", "airflow/logs") for path in (demo.directory / folder).rglob("*.log")]
    assert {path.name for path in logs} >= {"api-server.log", "scheduler.log", "gateway.log", "attempt=1.log"}
    assert len(list((demo.directory / "logs" / "pilots").iterdir())) >= 4
    assert secrets.shown_in_files(logs) == {}
    assert any(b"airflow" in text for text in watch.texts)
    assert set().union(*map(secrets.shown_in, watch.texts)) == set()
    # The one place that shows a password, because its reader is the person who started it.
    assert secrets.shown_in(demo.text) == {"password of admin"}
