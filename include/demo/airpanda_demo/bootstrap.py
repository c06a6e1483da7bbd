"""The first process of the demonstration, under whatever Python 3.11 there is: checks, installs, then watches.

The demonstration itself is a child of this process, in the environment just installed. Should it be killed, this
process ends what it left; should this process be killed, the child notices and stops everything. Standard library
only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from airpanda_demo.errors import DemoError, sentence
from airpanda_demo.install import Environment, install
from airpanda_demo.options import VARIABLES, free_ports, options
from airpanda_demo.place import VARIABLE, Place, place_for
from airpanda_demo.processes import MARK, become_subreaper, end_descendants, end_marked
from airpanda_demo.progress import Progress

CHECKOUT = Path(__file__).resolve().parents[3]
# What the demonstration takes over from the caller; services get less.
_PASSED_ON = ("HOME", "LANG", "LC_ALL", "TERM", "TZ", *VARIABLES, VARIABLE)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

HELP = """\
up     start, run the work, stay with the web UI until Ctrl-C; ready.json in the directory says when it is so
once   start, run the work, stop; status 0 only if everything is as promised
clean  stop what is left and remove the directory

environment variables:
  AIRPANDA_DEMO_DIR       the directory of the demonstration (default: /var/tmp/airpanda-demo)
  AIRPANDA_DEMO_PORT      port of the web UI (default: 8080 or a free one)
  AIRPANDA_DATABASE_URL   postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE, an empty database (default: an own server)
  AIRPANDA_DEMO_MYPROXY   embedded: our own MyProxy server, also where Debian's is installed
  AIRPANDA_DEMO_LAUNCHER  socket: the launcher's socket and our own mapping, also where sudo and LCMAPS are installed
"""

_BOOT = """
import sys
sys.path[:0] = sys.argv[1:3]
from airpanda_demo.run import main
sys.exit(main(sys.argv[3]))
"""


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 all is true, 1 something is not (one sentence on stderr), 130 and 143 when told to stop."""
    parser = argparse.ArgumentParser(
        prog="airpanda_demo",
        description="The whole chain on this machine.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("mode", choices=("up", "once", "clean"))
    mode: str = parser.parse_args(arguments).mode
    for number in stop_signals():
        signal.signal(number, _interrupt)
    os.umask(0o022)
    try:
        place = place_for(os.environ, CHECKOUT)
        return clean(place) if mode == "clean" else start(mode, place)
    except (DemoError, OSError) as error:
        print(f"airpanda demo: {sentence(error)}", file=sys.stderr)
    except KeyboardInterrupt as told:
        print("airpanda demo: stopped", file=sys.stderr)
        return 128 + int(told.args[0])
    return 1


def stop_signals() -> frozenset[signal.Signals]:
    """What stops a demonstration: Ctrl-C, SIGTERM, and the terminal's end unless nohup has said otherwise."""
    hang_up = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else set()
    return frozenset({signal.SIGINT, signal.SIGTERM} | hang_up)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def clean(place: Place) -> int:
    """Stop what is left and remove the directory; without one there is nothing to do."""
    if not place.root.exists():
        print(f"airpanda demo: there is no {place.root}")
        return 0
    place.claim()
    stopped = end_marked(place.root)
    place.remove()
    print(f"airpanda demo: removed {place.root}" + (f", stopped {stopped} processes" if stopped else ""))
    return 0


def start(mode: str, place: Place) -> int:
    """Prepare the directory and the environments, then run the demonstration and watch it."""
    if not sys.platform.startswith("linux"):
        raise DemoError(f"Linux is needed (namespaces, /proc), and this is {sys.platform}")
    progress = Progress()
    chosen = options(os.environ)
    place.claim()
    become_subreaper()
    stopped = end_marked(place.root)
    progress.say(f"the demonstration lives in {place.root}" + (f" (stopped {stopped} left-overs)" if stopped else ""))
    free_ports(chosen.port)  # the site looks again, but whoever waits for an installation wants to know it before
    place.check_space()
    place.empty()
    place.logs.mkdir(mode=0o700)
    with progress.phase("install"):
        install(environments(place), logs=place.logs, progress=progress)
    return _watch(mode, place, progress)


def environments(place: Place) -> list[Environment]:
    """The services' environment and the worker node's."""
    constraints = CHECKOUT / "include" / "demo" / "constraints.txt"
    services = (CHECKOUT / "requirements.txt", CHECKOUT / "requirements-demo.txt")
    node = (CHECKOUT / "include" / "physics" / "requirements.txt",)
    return [
        Environment("Airflow and its dependencies", place.venv, services, constraints),
        Environment(
            "the worker node's software (Pythia 8, NumPy, SciPy, matplotlib)", place.software, node, constraints
        ),
    ]


def _watch(mode: str, place: Place, progress: Progress) -> int:
    command = [str(place.venv / "bin" / "python"), "-I", "-c", _BOOT]
    command += [str(CHECKOUT / "include" / "demo"), str(CHECKOUT / "plugins"), mode]
    handover = {
        "checkout": str(CHECKOUT),
        "root": str(place.root),
        "lock": place.lock,
        "parent": os.getpid(),
        "started": progress.started,
        "phases": progress.phases,
    }
    # Held back until somebody handles them: here after the next lines, in the child once it can stop what it starts.
    numbers = stop_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    child = subprocess.Popen(
        command,
        env=environment(place, os.environ) | {"AIRPANDA_DEMO_HANDOVER": json.dumps(handover)},
        pass_fds=(place.lock,),
    )
    # Ctrl-C reaches the child by itself, as a member of the terminal's group; the others are passed on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in numbers - {signal.SIGINT}:
        signal.signal(number, lambda number, frame: child.send_signal(signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    status = child.wait()
    end_descendants(os.getpid())
    if status < 0:
        print(f"airpanda demo: it was killed by signal {-status}; what it had started is stopped", file=sys.stderr)
        return 128 - status
    return status


def environment(place: Place, given: dict[str, str] | os._Environ[str]) -> dict[str, str]:
    """What the demonstration's processes get: few variables, no proxies for loopback, and the mark."""
    kept = {name: given[name] for name in _PASSED_ON if name in given}
    return {"LANG": "C.UTF-8", **kept, "PATH": SYSTEM_PATH, "NO_PROXY": "*", MARK: str(place.root)}
