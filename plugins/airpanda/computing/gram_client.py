"""GRAM5 by its own client, ``globusrun``: submit, ask, cancel, renew, and run a program at the CE with data for it.

GRAM speaks HTTP wrapped in GSI with delegation inside, which no Python library does. Each call is one process, bounded
in time; it gets the robot's proxy as a 0600 file of a private directory and nothing else of this process's environment.

Source: Debian's globus-gram-client-tools 12.2 against globus-gatekeeper 11.4, globus-gram-job-manager 15.8.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from airpanda.computing.ces import GramCE
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    InvalidDescriptionError,
    PilotJobState,
    SubmitUncertainError,
)
from airpanda.computing.gram_rsl import contact_in, is_contact, relation, state_in, to_error
from airpanda.computing.transports import AnswerLostError, Completed, LocalTransport
from airpanda.core.clock import utcnow
from airpanda.core.errors import AirpandaError
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

_PATH = "/usr/local/bin:/usr/bin:/bin"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-")
_QUERY_S = 30.0
# While a program runs at the CE, globusrun serves files: any that it can read itself, to whoever holds a proxy of the
# robot. So it sees what it needs and nothing else of this machine.
_VIEW = (
    *("--unshare-all", "--share-net", "--die-with-parent", "--dev", "/dev", "--ro-bind", "/usr", "/usr"),
    *("--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *(
        word
        for name in ("hosts", "resolv.conf", "nsswitch.conf", "passwd", "group", "localtime")
        for word in ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    ),
)
# The program's input holds secrets. GRAM's own staging of stdin leaves it 0755 in a cache that other accounts may read;
# a scratch directory is 0700, and the job manager removes it.
_RUN = (
    "(scratch_dir=$(HOME))(file_stage_in=($(GLOBUSRUN_GASS_URL){path} $(SCRATCH_DIRECTORY)/in))"
    "(stdin=$(SCRATCH_DIRECTORY)/in)(directory=$(SCRATCH_DIRECTORY))(job_type=single)(count=1)"
)


class GramClient:
    """One GRAM CE as one robot. May be used by several threads. It is the transport of programs for the CE, too.

    Args:
        credential: the robot's; each proxy made of it lasts as long as it does.
    """

    def __init__(self, ce: GramCE, credential: ProxyCredential, *, clock: Callable[[], datetime] = utcnow) -> None:
        self.credential = credential
        self._ce, self._clock = ce, clock
        self._numbers = itertools.count()
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return f"the GRAM CE {self._ce.contact}"

    def use(self, credential: ProxyCredential) -> None:
        """Act as this credential from now on."""
        self.close()
        self.credential = credential

    def close(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            directory.cleanup()

    # --- jobs -----------------------------------------------------------------------------------------------

    def submit(self, rsl: str, *, timeout_s: float) -> str:
        """Submit one job in two phases, and return its contact: a client that dies in between leaves no job.

        ``-fast-batch`` needs no port of this machine. With it, ``globusrun`` ends with code 110 and a complaint
        although the job is committed; only "submission failed" means that it is not.

        Raises:
            SubmitUncertainError: the request went out and no whole answer came.
        """
        try:
            done = self._globusrun(
                "-q", "-fast-batch", "-full-proxy", "-r", self._contact(self._ce.service), rsl, timeout_s=timeout_s
            )
        except AnswerLostError as error:
            raise SubmitUncertainError(f"{self.name} did not answer in time: {error}") from error
        said, contact = _text(done.stderr), contact_in(_text(done.stdout))
        if contact and "submission failed" not in said:
            return contact
        failure = to_error(self.name, said + _text(done.stdout))
        raise SubmitUncertainError(str(failure)) if contact else failure

    def state(self, contact: str) -> PilotJobState | None:
        """GRAM's word on a job; None where it has none. What it has forgotten is DONE."""
        done = self._globusrun("-status", _checked(contact), timeout_s=_QUERY_S)
        return state_in(_text(done.stdout)) if done.exit_code == 0 else None

    def cancel(self, contact: str) -> bool:
        """Have the job manager end a job; it waits a few seconds before it kills. False: it could not."""
        return self._globusrun("-kill", _checked(contact), timeout_s=_QUERY_S).exit_code == 0

    def refresh(self, contact: str) -> bool:
        """Delegate a fresh proxy to a job. False: the job manager did not take it."""
        return self._globusrun("-full-proxy", "-refresh-proxy", _checked(contact), timeout_s=_QUERY_S).exit_code == 0

    # --- programs at the CE ---------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], stdin: bytes = b"", *, timeout_s: float) -> Completed:
        """Run one program on the CE's own machine, by the job manager that forks. See ``Transport``.

        The exit code is not known: it is always 0. The CE must reach this machine, as it fetches the data.
        """
        path = self._place() / f"call-{next(self._numbers)}"
        rsl = f"&{relation('executable', '/usr/bin/env')}{relation('arguments', *argv)}{_RUN.format(path=path)}"
        contact = self._contact(self._ce.fork_service)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(stdin)
            done = self._globusrun("-s", "-r", contact, rsl, timeout_s=timeout_s, serves=True)
        except AnswerLostError as error:
            hint = f"; it must be able to connect to this machine (ports {self._ce.ports or 'of any number'})"
            raise AnswerLostError(f"{self.name} did not run a program in time{hint}: {error}") from error
        except OSError as error:
            raise CEUnavailableError(f"this machine cannot write {path}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                path.unlink()
        if done.exit_code != 0:
            said = _text(done.stderr)
            failure = _not_run(said) or to_error(self.name, said)
            raise AnswerLostError(str(failure)) if isinstance(failure, SubmitUncertainError) else failure
        return Completed(0, done.stdout, done.stderr)

    # --- one process ----------------------------------------------------------------------------------------

    def _globusrun(self, *arguments: str, timeout_s: float, serves: bool = False) -> Completed:
        program = _program("globusrun", "globus-gram-client-tools")
        place = self._place()
        settings = {
            "HOME": place,
            "X509_USER_PROXY": place / "proxy.pem",
            "X509_CERT_DIR": self._ce.ca_dir,
            "GLOBUS_HOSTNAME": self._ce.callback_host,
            "GLOBUS_TCP_PORT_RANGE": self._ce.ports,
        }
        prefix = ("/usr/bin/env", *(f"{name}={value}" for name, value in settings.items() if value), program)
        if serves:
            ca_dir, own = self._ce.ca_dir, str(place)
            view = (*_VIEW, "--ro-bind", ca_dir, ca_dir, "--bind", own, own, "--chdir", own)
            prefix = (_program("bwrap", "bubblewrap"), *view, "--", *prefix)
        return LocalTransport(prefix).run(arguments, timeout_s=timeout_s)

    def _contact(self, service: str) -> str:
        return f"{self._ce.contact}/{service}" + (f":{self._ce.subject}" if self._ce.subject else "")

    def _place(self) -> Path:
        """The private directory with the robot's proxy; its name becomes part of RSL and of a URL."""
        with self._lock:
            if self._directory is None:
                made = tempfile.TemporaryDirectory(prefix="airpanda-gram-")
                try:
                    self._put_proxy(Path(made.name))
                except BaseException:
                    made.cleanup()
                    raise
                self._directory = made
            return Path(self._directory.name)

    def _put_proxy(self, place: Path) -> None:
        if not _PLAIN.issuperset(str(place)):
            raise InvalidDescriptionError(f"GRAM cannot take files from {place}: let TMPDIR be a plain path")
        now = self._clock()
        left = self.credential.not_after - now
        if left <= timedelta(0):
            raise CECredentialError(f"the credential of {self.credential.identity} is over; its owner must renew it")
        try:
            proxy = create_proxy(self.credential, lifetime=left, now=now)
        except AirpandaError as error:
            raise CECredentialError(f"no proxy can be made for {self.name}: {error}") from error
        with os.fdopen(os.open(place / "proxy.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(proxy.to_pem().reveal())


def _program(name: str, package: str) -> str:
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise CEUnavailableError(f"this machine has no {name}: its administrator must install it (Debian: {package})")
    return path


def _not_run(said: str) -> CEUnavailableError | None:
    """What bubblewrap's complaint means, if it is one: then ``globusrun`` has not begun, and GRAM knows of nothing."""
    if not said.startswith("bwrap: "):
        return None
    words = " ".join(said.split())[:700]
    if found := re.search(r"Can't find source path (.+?): ", words):
        todo = f"its administrator must put {found[1]} there, or the queue file must name another [ce] ca_dir"
    elif re.search(r"No permissions|namespace|uid map|not permitted|Permission denied", words):
        todo = "its administrator must let Airflow's account make user namespaces (user.max_user_namespaces above 0)"
    else:
        todo = "its administrator must look"
    return CEUnavailableError(f"this machine cannot run globusrun apart from its other files; {todo}: {words}")


def _checked(contact: str) -> str:
    if not is_contact(contact):
        raise InvalidDescriptionError(f"{contact!r} is no contact of a GRAM job")
    return contact


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
