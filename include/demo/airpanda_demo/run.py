"""The demonstration itself, in the environment that the bootstrap installed: start, work, report, stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import psycopg2

from airpanda.core.errors import AirpandaError
from airpanda_demo import report
from airpanda_demo.airflow_api import AirflowApi
from airpanda_demo.bootstrap import stop_signals
from airpanda_demo.errors import DemoError, sentence
from airpanda_demo.nodes import DemoNode
from airpanda_demo.options import DATABASE_URL, options
from airpanda_demo.place import Place
from airpanda_demo.postgres import PostgresError, PrivatePostgres
from airpanda_demo.processes import (
    Service,
    become_subreaper,
    die_with_parent,
    end_descendants,
    run_step,
    wait_for_step,
    wait_until_ready,
)
from airpanda_demo.progress import Progress
from airpanda_demo.services import airflow_command, airflow_environment, airflow_services, gateway, myproxy
from airpanda_demo.site import Site, write_private
from airpanda_demo.work import Work

STOP_PATIENCE_S = 3.0  # the scheduler would wait for running tasks, which have lost their api-server
FULL_BYTES = 16_000_000


class Demonstration:
    """All of it. ``start`` and ``work`` may fail or be interrupted anywhere; ``stop`` then ends what there is."""

    def __init__(self, site: Site, progress: Progress) -> None:
        self._site = site
        self._progress = progress
        self._postgres: PrivatePostgres | None = None
        self._node = DemoNode(site)
        self._services: list[Service] = []
        self._api = AirflowApi(site.ui_url.replace("localhost", "127.0.0.1"), "admin", site.admin_password)

    def start(self) -> None:
        """Bring everything up and wait until it is healthy."""
        with self._progress.phase("site and database"):
            url = self._start_database()
            self._site.write_configuration(url)
        with self._progress.phase("migrations and worker node"):
            migration = self._step("airflow db migrate", "db", "migrate")
            self._start(myproxy(self._site))
            node = self._node.start()
            self._site.write_queue(node)
            chosen = self._node.switching
            what = "on this machine, without an identity switch" if chosen is None else "with accounts of its own"
            self._progress.say(f"worker node ready, {what}")
            if chosen is not None:
                self._progress.say(chosen.words)
            wait_for_step(migration, 120.0)
            self._progress.say("Airflow's and airpanda's tables are ready")
        with self._progress.phase("services"):
            for service in (*airflow_services(self._site, self._api), gateway(self._site)):
                self._start(service)
            connections = self._site.write_connections()
            imported = self._step("airflow connections import", "connections", "import", str(connections))
            wait_for_step(imported, 120.0)
            connections.unlink()
            wait_until_ready(self._services, told=lambda name: self._progress.say(f"{name} is ready"))
            self._api.login()

    def work(self) -> list[str]:
        """Run the work, print the table, write the report. Returns what is not as promised.

        Raises:
            DemoError: it could not be finished.
        """
        place = self._site.place
        try:
            with Work(self._site, self._api, self._progress) as work:
                work.run()
                jobs, peaks, timeline = work.jobs(), work.fetch_peaks(), work.timeline()
        except httpx.TransportError as error:
            raise DemoError(f"the api-server does not answer ({error}); its log is in {place.logs}") from error
        jobs, switching = report.with_launches(jobs, self._node.launches()), self._node.switching
        wrong = report.verdict(jobs, peaks, switching=switching)
        about: dict[str, Any] = {
            "phases_s": {name: round(seconds, 2) for name, seconds in self._progress.phases.items()},
            "timeline": timeline,
            "identity_switch": self._site.switches,
            "launcher": None if switching is None else {"launcher": switching.way, "mapping": switching.mapping},
            "wrong": wrong,
        }
        report.write(place.report, jobs, peaks, elapsed_s=self._progress.elapsed_s, about=about)
        print(f"\n{report.table(jobs)}\n", flush=True)
        if switching is not None:
            print(f"{report.summary(jobs, switching)}\n")
        else:
            print(
                "identity_switched = false: started by an ordinary user, this site has no launcher. All payloads ran "
                "under the\npilot's own account, contained; the queue's policy OPTIONAL allows that. Start it as root "
                "to see the switch.\n"
            )
        for peak in peaks:
            uncertainty = peak.result["mass_error_gev"]
            print(f"{peak.owner}: m_Z = {peak.mass_gev:.3f} ± {uncertainty:.3f} GeV, picture {peak.picture}")
        print(f"report: {place.report}\nwhere the time went: {self._progress.summary()}")
        return wrong

    def watch(self) -> None:
        """Stay until somebody ends it (KeyboardInterrupt). Raises DemoError when a service ends by itself."""
        while True:
            for service in self._services:
                service.check()
            time.sleep(1.0)

    def stop(self) -> None:
        """End everything that was started, whatever state it is in."""
        for service in reversed(self._services):
            service.terminate()
        deadline = time.monotonic() + STOP_PATIENCE_S
        while time.monotonic() < deadline and any(service.runs for service in self._services):
            time.sleep(0.05)
        self._node.stop()
        if self._postgres is not None:
            self._postgres.stop()
        end_descendants(os.getpid(), patience_s=2.0)

    def _start_database(self) -> str:
        """The URL of the database; certificates are made meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            identities = pool.submit(self._site.make_identities)
            if (url := self._site.options.database_url) is not None:
                check_database(url)
            else:
                # Not in a thread: the server would end with the thread that started it.
                self._postgres = PrivatePostgres(self._site.place.postgres, durable=False)
                self._postgres.start()
                url = self._postgres.url()
            identities.result()
        self._progress.say("certificates and database are ready")
        return url

    def _start(self, service: Service) -> None:
        self._services.append(service)
        service.start()

    def _step(self, name: str, *words: str) -> Service:
        log = self._site.place.logs / f"{name.replace(' ', '-')}.log"
        return run_step(name, airflow_command(self._site, *words), log=log, environment=airflow_environment(self._site))


def check_database(url: str) -> None:
    """Raise DemoError unless this database answers and is empty: what is in it is somebody's."""
    try:
        with closing(psycopg2.connect(url.replace("+psycopg2", "", 1), connect_timeout=5)) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()")
            (tables,) = cursor.fetchone() or (0,)
    except psycopg2.Error as error:
        # What libpq says of a malformed URL quotes it, password included.
        known = isinstance(error, psycopg2.OperationalError) and str(error).strip()
        reason = str(error).strip().splitlines()[0] if known else "the URL is malformed or the account may not look"
        raise DemoError(
            f"the database of {DATABASE_URL} cannot be used ({reason}); start it or correct the URL, "
            "or unset the variable to use the embedded server"
        ) from None
    if tables:
        raise DemoError(
            f"the database of {DATABASE_URL} holds {tables} tables already, and the demonstration needs an empty one "
            "for itself: make one with createdb, or unset the variable to use the embedded server"
        )


def main(mode: str) -> int:
    """The exit status, as in ``bootstrap.main``."""
    handover = json.loads(os.environ.pop("AIRPANDA_DEMO_HANDOVER"))
    stopped = _Signals()
    become_subreaper()
    die_with_parent(signal.SIGTERM, handover["parent"])
    place = Place(Path(handover["root"]))
    place.adopt(handover["lock"])
    progress = Progress(started=handover["started"], phases=handover["phases"])
    demonstration: Demonstration | None = None
    try:
        stopped.listen()
        chosen = options(os.environ)
        os.environ.pop(DATABASE_URL, None)  # it holds a password, and what is started inherits the environment
        site = Site(place, Path(handover["checkout"]), chosen)
        demonstration = Demonstration(site, progress)
        demonstration.start()
        return _work(mode, site, demonstration)
    except (DemoError, PostgresError, AirpandaError, OSError) as error:
        print(f"airpanda demo: {_reason(error, place)}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 128 + (stopped.number or signal.SIGINT)
    finally:
        stopped.ignore()
        place.ready.unlink(missing_ok=True)
        progress.say("stopping everything")
        if demonstration is not None:
            demonstration.stop()
        progress.say("stopped")


def _work(mode: str, site: Site, demonstration: Demonstration) -> int:
    try:
        wrong = demonstration.work()
    except DemoError as error:
        if mode == "once":
            raise
        wrong = [str(error)]
    for reason in wrong:
        print(f"airpanda demo: NOT AS PROMISED: {reason}", file=sys.stderr, flush=True)
    if mode == "up":
        _write_ready(site, wrong)
        print(f"\nweb UI: {site.ui_url}   user admin, password {site.admin_password.reveal()}", flush=True)
        print("Ctrl-C stops everything.", flush=True)
        demonstration.watch()
    return 1 if wrong else 0


def _write_ready(site: Site, wrong: list[str]) -> None:
    """``ready.json``, for programs that wait: complete when it is there, gone when the demonstration stops."""
    place = site.place
    login = str(place.airflow / "passwords.json")
    content = {"pid": os.getpid(), "url": site.ui_url, "login_file": login, "wrong": wrong}
    write_private(place.ready, json.dumps(content, indent=1) + "\n")


def _reason(error: Exception, place: Place) -> str:
    """One sentence. A full disk shows itself in many ways, in other programs' logs too."""
    if shutil.disk_usage(place.root).free < FULL_BYTES:
        return f"no disk space is left for {place.root}; make room and run again"
    return sentence(error)


class _Signals:
    """The first Ctrl-C, SIGTERM or SIGHUP interrupts; after it all are ignored, since stopping has its time limits."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._all = stop_signals()
        for number in self._all:
            signal.signal(number, self._interrupt)

    def listen(self) -> None:
        """Whoever started this process held them back."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._all)

    def ignore(self) -> None:
        for number in self._all:
            signal.signal(number, signal.SIG_IGN)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.ignore()
        self.number = number
        raise KeyboardInterrupt
