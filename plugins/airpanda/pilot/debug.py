"""What a person asks to see of a running job: the end of its log, its processes, its files.

Heartbeats keep the lease and must never wait for an answer: each is made in a thread of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Callable, Optional

from airpanda.core.clock import to_wire
from airpanda.core.errors import AirpandaError
from airpanda.core.text import clean, without_keys
from airpanda.pilot import wire

if TYPE_CHECKING:
    from airpanda.glexec.ports import ProcessSeen

log = logging.getLogger(__name__)

MAX_PROCESSES = 500
_MAX_COMMAND = 300


class Answers:
    """The answer to the last question, kept until it has arrived.

    Args:
        show: makes the answer; may take its time and may fail, which is an answer too.
        name: of the thread.
        ready: called when there is an answer.
        now: the node's clock.
    """

    def __init__(
        self, show: Callable[[str], str], *, name: str, ready: Callable[[], None], now: Callable[[], datetime]
    ) -> None:
        self._show, self._name, self._ready, self._now = show, name, ready, now
        self._thread: Optional[threading.Thread] = None
        self._asked = ""
        self._answer = ""

    def hear(self, what: str) -> None:
        """A reply of the dispatcher: what is asked for, or nothing. A question is repeated until it is answered."""
        if what and what != self._asked:
            self._answer = ""  # the one before is of no interest any more
        if what and not self._answer and (self._thread is None or not self._thread.is_alive()):
            self._asked = what
            self._thread = threading.Thread(target=self._make, args=(what,), name=self._name, daemon=True)
            self._thread.start()

    def untold(self) -> str:
        """What the next report should carry, or nothing."""
        return self._answer

    def arrived(self, answer: str) -> None:
        """The dispatcher has this answer."""
        if answer == self._answer:
            self._answer = ""

    def wait(self, timeout_s: float) -> None:
        """Until no answer is being made: nothing may look into a sandbox that is about to be removed."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _make(self, what: str) -> None:
        begin = f"{what} at {to_wire(self._now())}\n"
        try:
            text = self._show(what)
        except (AirpandaError, OSError) as error:
            text = f"the pilot cannot show it: {error}"
        except Exception as error:  # outermost frame of this thread: whoever asked must not wait for ever
            log.exception("the question %r failed", what)
            text = f"the pilot failed to show it: {type(error).__name__}: {error}"
        self._answer = begin + clean(without_keys(text))[: wire.MAX_DEBUG_CHARS - len(begin)]
        self._ready()


def unknown(what: str) -> str:
    """The answer to what this pilot does not know."""
    return f"this pilot cannot show {what!r}; it knows {', '.join(wire.DEBUG)}"


def process_table(processes: Sequence[ProcessSeen]) -> str:
    """One line for each process, as ``ps`` shows them; the first ``MAX_PROCESSES``."""
    if not processes:
        return "no process of the payload can be seen"
    lines = ["    PID   PPID S     CPU_S    RSS_KIB COMMAND"]
    for one in processes[:MAX_PROCESSES]:
        command = " ".join(one.command.split())[:_MAX_COMMAND]
        lines.append(f"{one.pid:7} {one.parent:6} {one.state} {one.cpu_s:9.2f} {one.rss_kib:10} {command}")
    more = len(processes) - MAX_PROCESSES
    return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)
