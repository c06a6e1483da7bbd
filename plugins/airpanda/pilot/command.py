"""The payload's command: what is started, with what environment, and what its end means."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

from airpanda.pilot import errors
from airpanda.pilot.config import PilotConfig
from airpanda.pilot.errors import JobFault
from airpanda.pilot.wire import Job, Spec

if TYPE_CHECKING:
    from airpanda.glexec.switchers import PayloadOutcome
    from airpanda.pilot.watch import Watch


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


def payload_faults(outcome: PayloadOutcome, spec: Spec, watch: Optional[Watch]) -> list[JobFault]:
    """What is wrong with a payload that ended badly by itself, or whose end nobody has seen.

    The kernel kills for want of memory by SIGKILL.
    """
    if outcome.launcher_lost:
        return [JobFault(errors.LAUNCHER_LOST, outcome.launcher_lost)]
    code = outcome.exit_code
    how = f"killed by signal {outcome.signal}" if outcome.signal is not None else f"exit code {code}"
    faults = [JobFault(errors.PAYLOAD, how, number=code)]
    peak_mib = max(outcome.max_rss_kib / 1024, 0.0 if watch is None else watch.peak_rss_mib)
    if outcome.signal == signal.SIGKILL and peak_mib > spec.memory_mib:
        text = f"{peak_mib:.0f} MiB, {spec.memory_mib} asked for; the node's kernel may have killed it for that"
        faults.append(JobFault(errors.MEMORY, text))
    return faults
