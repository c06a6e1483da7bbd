"""The ``local`` computing element: pilots as processes of an unprivileged account, here or on a node nearby.

``[ce] enter`` is an argv prefix that reaches the node (such as a script around ``nsenter``); everything that touches
processes or files runs inside, by ``node_agent``, so that process ids and paths are the node's own. Data travels on
stdin: nothing is quoted for a shell, and no secret is in an argv or an environment.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from airpanda.computing.ces import LocalCE
from airpanda.computing.configuration import pilot_json
from airpanda.computing.elements import (
    CEUnavailableError,
    ComputingElementError,
    Handle,
    InvalidDescriptionError,
    Limits,
    Load,
    NotFoundAtCEError,
    Outcome,
    PilotBatch,
    PilotJobState,
    Status,
    Submission,
    ThrottledError,
)
from airpanda.computing.queues import PandaQueue
from airpanda.computing.refusals import check_size, lost, parsed

if TYPE_CHECKING:
    from airpanda.x509.credential import ProxyCredential

_HANDLE = re.compile(r"[A-Za-z0-9_-]{1,64}-[0-9]{1,19}")
_BOOT = 'import sys;f=sys.stdin.buffer;exec(compile(f.read(int(f.readline())),"node_agent.py","exec"))'
_MARK = "airpanda-node-agent "
_RETRY_S = 30.0


class LocalElement:
    """Pilots of one queue on one node. Holds no connection and no state: all of that is on the node.

    Args:
        queue: its ``[ce]`` and ``[pilot]`` say where and how.
        wrapper: text of the POSIX shell script that becomes the pilot.
        timeout_s: the longest one call may take.
        grace_s: a cancel repeated later than this kills.
    """

    limits = Limits(max_batch=1000, max_handles=10_000)

    def __init__(self, queue: PandaQueue, wrapper: str, *, timeout_s: float = 120.0, grace_s: float = 60.0) -> None:
        if not isinstance(queue.ce, LocalCE):
            raise InvalidDescriptionError(f"the queue {queue.name} is not of kind local")
        self.name = f"local:{queue.name}"
        self._queue = queue
        self._ce = queue.ce
        self._wrapper = wrapper
        self._timeout_s = timeout_s
        self._grace_s = grace_s

    def submit(self, batch: PilotBatch) -> Submission:
        """Start the pilots of one batch.

        Raises:
            InvalidDescriptionError: more than ``limits.max_batch``, or the node refuses account or directory.
            ThrottledError: they would exceed ``max_pilots``; nothing was started.
            CEUnavailableError: the node does not answer or cannot start a process; a repeat is safe.
            SubmitUncertainError: the node took the request and did not answer in time; a repeat is safe.
        """
        check_size(batch, self.limits)
        answer = self._call(
            {
                "op": "submit",
                "tag": batch.tag,
                "wrapper": self._wrapper,
                "arguments": [self._queue.pilot.code, self._queue.pilot.python],
                "pilots": {str(p): pilot_json(self._queue, batch.tag, p, t) for p, t in batch.tokens.items()},
            }
        )
        handles = {int(pilot): Handle(name) for pilot, name in answer["handles"].items()}
        return Submission(tag=batch.tag, handles=handles, adopted=frozenset(map(int, answer["adopted"])))

    def status(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        return self._statuses({"op": "status", "handles": _checked(handles)})

    def find(self, tag: str) -> Mapping[Handle, Status]:
        return self._statuses({"op": "find", "tag": tag})

    def cancel(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        return self._outcomes({"op": "cancel", "handles": _checked(handles), "grace_s": self._grace_s})

    def purge(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        return self._outcomes({"op": "purge", "handles": _checked(handles)})

    def fetch(self, handle: Handle, *, tail_bytes: int = 65536) -> bytes:
        data = self._call({"op": "fetch", "handles": _checked([handle]), "tail_bytes": tail_bytes})["data"]
        if data is None:
            raise NotFoundAtCEError(f"{self.name} has no log of the pilot job {handle!r}")
        return base64.b64decode(data)

    def tagged(self, prefix: str) -> Mapping[str, Sequence[Handle]]:
        found: dict[str, list[Handle]] = {}
        for name in self._call({"op": "tagged", "prefix": prefix})["names"]:
            found.setdefault(name.rpartition("-")[0], []).append(Handle(name))
        return found

    def load(self) -> Load:
        """The pilots of this node's directory, whoever submitted them; ``free``: what ``max_pilots`` leaves."""
        running = int(self._call({"op": "load"})["running"])
        return Load(queued=0, running=running, free=max(0, self._ce.max_pilots - running))

    def renew(self, credential: ProxyCredential) -> datetime:
        """Replace ``[pilot] proxy`` on the node: pilots read it whenever they need it."""
        pem = credential.to_pem().reveal().decode("ascii")
        self._call({"op": "renew", "proxy": self._queue.pilot.proxy, "credential": pem})
        return credential.not_after

    def close(self) -> None:
        """Nothing is held open."""

    def _statuses(self, request: dict[str, Any]) -> dict[Handle, Status]:
        return {
            Handle(name): Status(PilotJobState(s["state"]), s.get("exit_code"), s.get("reason", ""))
            for name, s in self._call(request)["statuses"].items()
        }

    def _outcomes(self, request: dict[str, Any]) -> dict[Handle, Outcome]:
        return {Handle(name): Outcome(word) for name, word in self._call(request)["outcomes"].items()}

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        ce = self._ce
        common = {"directory": ce.directory, "account": ce.account, "max_pilots": ce.max_pilots}
        source = resources.files("airpanda.computing").joinpath("node_agent.py").read_bytes()
        data = b"%d\n%s%s" % (len(source), source, json.dumps({**common, **request}).encode())
        submitting = request["op"] == "submit"
        try:
            done = subprocess.run(
                [*ce.enter, self._python(), "-I", "-S", "-c", _BOOT],
                input=data,
                capture_output=True,
                timeout=self._timeout_s,
                env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"},
                cwd="/",
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise lost(submitting, f"{self.name} did not answer within {self._timeout_s:.0f} s") from error
        except OSError as error:
            raise CEUnavailableError(f"{self.name} cannot be reached: {error}") from error
        return _answer(self.name, done, submitting=submitting)

    def _python(self) -> str:
        """The interpreter for the agent: the node's, or on this machine the one that runs now."""
        if self._ce.enter:
            return self._queue.pilot.python or "/usr/bin/python3"
        return sys.executable


def _checked(handles: Sequence[Handle]) -> list[str]:
    return [match[0] for match in parsed(handles, _HANDLE, "a local computing element")]


def _answer(name: str, done: subprocess.CompletedProcess[bytes], *, submitting: bool) -> dict[str, Any]:
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith(_MARK)]
    if not lines:
        said = done.stderr.decode(errors="replace").strip()[-500:] or "nothing"
        text = f"the node of {name} ended with code {done.returncode} and no answer; it said: {said}"
        raise lost(submitting, text)
    answer: dict[str, Any] = json.loads(lines[-1][len(_MARK) :])
    if "error" in answer:
        raise _error(answer["error"], f"{name}: {answer['text']}")
    return answer


def _error(kind: str, text: str) -> ComputingElementError:
    if kind == "throttled":
        return ThrottledError(text, retry_after_s=_RETRY_S)
    return InvalidDescriptionError(text) if kind == "invalid" else CEUnavailableError(text)
