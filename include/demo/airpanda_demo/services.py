"""The programs of the demonstration: their command lines, environments and how one sees that they are ready."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from airpanda_demo.airflow_api import AirflowApi
from airpanda_demo.bootstrap import SYSTEM_PATH, environment
from airpanda_demo.options import DATABASE_URL
from airpanda_demo.processes import Service
from airpanda_demo.site import Site

_MYPROXY_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin"


def airflow_command(site: Site, *words: str) -> list[str]:
    """``airflow …`` in the services' environment."""
    return [str(site.place.venv / "bin" / "python"), "-m", "airflow", *words]


def airflow_environment(site: Site) -> dict[str, str]:
    """Of every process that reads airflow.cfg. Secrets are in that file, not here."""
    place = site.place
    base = environment(place, os.environ)
    base.pop(DATABASE_URL, None)
    return {
        **base,
        "PATH": f"{place.venv / 'bin'}:{SYSTEM_PATH}",
        "HOME": str(place.airflow),
        "AIRFLOW_HOME": str(place.airflow),
        "PYTHONPATH": str(site.checkout / "plugins"),
        # The checkout is somebody's: no byte code of other accounts there.
        "PYTHONDONTWRITEBYTECODE": "1",
        # Airflow's task processes fork; a task must not be told that fork and threads do not mix.
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }


def airflow_services(site: Site, api: AirflowApi) -> list[Service]:
    """api-server, scheduler, triggerer and dag-processor. Logs are read from disk: no log servers."""
    place, settings = site.place, airflow_environment(site)

    def service(name: str, words: Sequence[str], component: str) -> Service:
        argv = airflow_command(site, name, *words)
        return Service(name, argv, place.logs / f"{name}.log", settings, lambda: api.is_healthy(component))

    server = airflow_command(site, "api-server", "--host", "127.0.0.1", "--port", str(site.ports.api))
    return [
        Service("api-server", server, place.logs / "api-server.log", settings, api.is_answering),
        service("scheduler", ["--skip-serve-logs"], "scheduler"),
        service("triggerer", ["--skip-serve-logs"], "triggerer"),
        service("dag-processor", [], "dag_processor"),
    ]


def gateway(site: Site) -> Service:
    """The dispatcher for pilots, behind mutual TLS."""
    place, host = site.place, site.pki.host
    port_file = place.airflow / "gateway.port"
    argv = [str(place.venv / "bin" / "python"), "-m", "airpanda.dispatcher.gateway"]
    argv += ["--port", str(site.ports.gateway), "--cert", str(host.cert), "--key", str(host.key)]
    argv += ["--ca-dir", str(site.pki.ca_dir), "--port-file", str(port_file)]
    return Service("gateway", argv, place.logs / "gateway.log", airflow_environment(site), port_file.exists)


def myproxy(site: Site) -> Service:
    """Debian's MyProxy server when it is installed and not unwanted, else our development server."""
    program = None if site.options.embedded_myproxy else shutil.which("myproxy-server", path=_MYPROXY_PATH)
    policies = site.write_myproxy_policies()
    store = site.place.myproxy / "store"
    store.mkdir(mode=0o700)
    return _debian_myproxy(site, program, policies, store) if program else _own_myproxy(site, policies, store)


def _debian_myproxy(site: Site, program: str, policies: Path, store: Path) -> Service:
    place, host = site.place, site.pki.host
    pid_file = place.myproxy / "pid"
    argv = [program, "-c", str(policies), "-s", str(store), "-l", "127.0.0.1"]
    argv += ["-p", str(site.ports.myproxy), "-P", str(pid_file)]
    settings = {
        **_minimal(site),
        "X509_CERT_DIR": str(site.pki.ca_dir),
        "X509_USER_CERT": str(host.cert),
        "X509_USER_KEY": str(host.key),
    }
    log = place.logs / "myproxy.log"
    return Service(
        "MyProxy (Debian's)", argv, log, settings, lambda: _listens(site.ports.myproxy), 20.0, daemon_pid=pid_file
    )


def _own_myproxy(site: Site, policies: Path, store: Path) -> Service:
    place, host = site.place, site.pki.host
    argv = [str(place.venv / "bin" / "python"), "-m", "airpanda.myproxy.server"]
    argv += ["--config", str(policies), "--storage", str(store), "--ca-dir", str(site.pki.ca_dir)]
    argv += ["--host-cert", str(host.cert), "--host-key", str(host.key), "--port", str(site.ports.myproxy)]
    settings = {**_minimal(site), "PYTHONPATH": str(site.checkout / "plugins"), "PYTHONDONTWRITEBYTECODE": "1"}
    log = place.logs / "myproxy.log"
    return Service("MyProxy (our own)", argv, log, settings, lambda: _listens(site.ports.myproxy), 20.0)


def _minimal(site: Site) -> Mapping[str, str]:
    base = environment(site.place, {})
    return {**base, "HOME": str(site.place.myproxy)}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
