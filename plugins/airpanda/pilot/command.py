"""The payload's command: what is started, with what environment, and what its end means."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airpanda.pilot import errors
from airpanda.pilot.config import PilotConfig
from airpanda.pilot.errors import JobFault
from airpanda.pilot.wire import Job

if TYPE_CHECKING:
    from airpanda.glexec.switchers import PayloadOutcome


def payload_environment(job: Job, config: PilotConfig) -> dict[str, str]:
    """The site's set-up, then the job's own words, then who it is."""
    own = {"PandaID": str(job.panda_id), "PANDA_ATTEMPT_NR": str(job.attempt_nr), "PANDA_SITE": config.queue}
    return {"PATH": "/usr/bin:/bin", **config.environment, **job.spec.env, **own}


def resolve(argv: Sequence[str], path: str) -> list[str]:
    """The command with ``argv[0]`` found on the node's PATH; a relative path with a slash means the sandbox.

    Raises:
        JobFault: there is no such program.
    """
    if "/" in argv[0]:
        return list(argv)
    found = shutil.which(argv[0], path=path)
    if found is None:
        raise JobFault(errors.NOT_EXECUTABLE, f"{argv[0]!r} is not on the node's PATH {path!r}")
    return [found, *argv[1:]]


def payload_fault(outcome: PayloadOutcome) -> JobFault:
    """The fault of a payload that ended by itself and badly."""
    code = outcome.exit_code
    how = f"killed by signal {outcome.signal}" if outcome.signal is not None else f"exit code {code}"
    return JobFault(errors.PAYLOAD, how, number=code)
