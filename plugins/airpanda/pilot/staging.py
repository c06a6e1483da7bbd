"""Files of one job between the dispatcher and this node: inputs and scripts in, outputs and log out."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from airpanda.core.errors import (
    AirpandaError,
    IdentitySwitchError,
    NotAuthorisedError,
    NotFoundError,
    RequestError,
    StaleReportError,
)
from airpanda.pilot import errors
from airpanda.pilot.client import DispatcherClient
from airpanda.pilot.errors import JobFault, Kind
from airpanda.pilot.transfers.plan import inputs_elsewhere, inputs_here, outputs_elsewhere, outputs_here
from airpanda.pilot.wire import Job

if TYPE_CHECKING:
    from airpanda.glexec.switchers import IdentitySwitcher
    from airpanda.pilot.transfers.mover import Moved, Mover

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
_TRIES, _PAUSE_S = 3, 1.0
MIB = 1024 * 1024


def stage_in(client: DispatcherClient, job: Job, folder: Path, *, max_bytes: int) -> dict[str, Path]:
    """Scripts of a job and inputs that the dispatcher keeps, as files in the new directory ``folder``, by name.

    Raises:
        JobFault: an input is missing, refused or does not arrive whole.
        StaleReportError: the attempt is no longer ours.
    """
    spec, inputs = job.spec, inputs_here(job)
    folder.mkdir(mode=0o700)
    for name, text in spec.scripts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for lfn in inputs:
        try:
            client.get_input(job, lfn, folder / lfn, max_bytes=max_bytes, patience_s=PATIENCE_S)
        except StaleReportError:
            raise
        except (AirpandaError, OSError) as error:
            raise JobFault(_kind(error), f"{lfn}: {error}") from error
    return {name: folder / name for name in (*spec.scripts, *inputs)}


def collect(
    switcher: IdentitySwitcher, sandbox: Path, proxy: Path, job: Job, folder: Path
) -> tuple[dict[str, Path], list[JobFault]]:
    """The outputs for the dispatcher, copied out of the sandbox into the new directory ``folder``.

    A fault for each missing one. What a payload has made is worth some patience with a launcher that was just killed.

    Raises:
        JobFault: together they are over the job's disk limit.
        IdentitySwitchError: the switch has failed, each time.
    """
    outputs = outputs_here(job)
    folder.mkdir(mode=0o700)
    for attempt in range(_TRIES):
        into = folder / str(attempt)
        into.mkdir(mode=0o700)
        try:
            found = switcher.get(sandbox, proxy, outputs, into, max_bytes=job.spec.disk_mib * MIB)
        except RequestError as error:
            raise JobFault(errors.OUTPUT_TOO_LARGE, str(error)) from error
        except IdentitySwitchError as error:
            if attempt + 1 == _TRIES:
                raise
            log.warning("%s: the outputs were not fetched, trying again: %s", job, error)
            shutil.rmtree(into, ignore_errors=True)
            time.sleep(_PAUSE_S)
        else:
            break
    missing = [name for name in outputs if name not in found]
    return dict(found), [JobFault(errors.OUTPUT_MISSING, name) for name in missing[:20]]


def fetch_elsewhere(mover: Mover, job: Job) -> list[JobFault]:
    """Inputs at URLs, put into the sandbox by their owner; a fault for each that could not be.

    Raises:
        IdentitySwitchError: the switch has failed.
        AirpandaError: ``mover.go_on`` says that it must not go on.
    """
    wanted = inputs_elsewhere(job)
    return mover.move(wanted, max_bytes=job.spec.disk_mib * MIB)[1] if wanted else []


def store_elsewhere(mover: Mover, job: Job) -> tuple[list[Moved], list[JobFault]]:
    """Outputs with destinations, taken there from the sandbox by their owner; raises as ``fetch_elsewhere``."""
    wanted = outputs_elsewhere(job)
    return mover.move(wanted, max_bytes=job.spec.disk_mib * MIB) if wanted else ([], [])


def store(
    client: DispatcherClient, job: Job, files: Iterable[tuple[str, Path]], *, patience_s: float
) -> list[JobFault]:
    """Send files to the dispatcher; what could not be stored comes back as faults.

    Raises:
        StaleReportError: the attempt is no longer ours.
    """
    faults = []
    for name, path in files:
        try:
            client.put_file(job, name, path, patience_s=patience_s)
        except StaleReportError:
            raise
        except (AirpandaError, OSError) as error:
            faults.append(JobFault(errors.STAGE_OUT, f"{name}: {error}"))
    return faults


def _kind(error: Exception) -> Kind:
    """Whose turn it is: an input that is not there or not for this owner will not come by trying again."""
    if isinstance(error, NotAuthorisedError) and error.authenticated:
        return errors.INPUT_REFUSED
    return errors.INPUT_MISSING if isinstance(error, NotFoundError) else errors.STAGE_IN
