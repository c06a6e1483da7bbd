"""``python -m airpanda.pilot <pilot.json>``: one pilot, from probe to end."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from airpanda.core.errors import ConfigurationError
from airpanda.pilot import errors
from airpanda.pilot.agent import Agent
from airpanda.pilot.config import PilotConfig, take_config
from airpanda.pilot.credentials import from_myproxy
from airpanda.pilot.stopping import Stop
from airpanda.pilot.sweep import begin, end, sweep

if TYPE_CHECKING:
    from airpanda.glexec.switchers import IdentitySwitcher

log = logging.getLogger("airpanda.pilot")


def main(arguments: Sequence[str]) -> int:
    """Run the pilot described by one file; with ``--sweep`` clean up after it. The exit code is PanDA's."""
    if len(arguments) not in (1, 2) or arguments[1:] not in ([], ["--sweep"]):
        print("usage: python -m airpanda.pilot <pilot.json> | <sweep.json> --sweep", file=sys.stderr)
        return errors.EXIT_NO_FILE
    _start_logging()
    os.umask(0o077)
    stop = Stop()
    stop.install()
    try:
        config = take_config(Path(arguments[0]))
        begin(config)
    except (ConfigurationError, OSError) as error:
        log.error("%s", error)
        return errors.EXIT_NO_FILE
    if len(arguments) == 2:
        log.warning("pilot %s was killed; cleaning up after it", config.pilot_id)
        sweep(config, lambda: choose_switch(config))
        return errors.EXIT_OK
    log.info("pilot %s of %s for queue %s", config.pilot_id, config.tag, config.queue)
    retrieve = from_myproxy(config.proxy, config.ca_dir, at_once=config.max_payloads or config.slot.cores)
    code = Agent(config, stop, lambda: choose_switch(config), retrieve).run()
    end(config)
    return code


def choose_switch(config: PilotConfig) -> IdentitySwitcher:
    """The node's best identity switch that the queue's policy accepts.

    Raises:
        IdentitySwitchError: there is none.
    """
    from airpanda.glexec.contract import find_glexec
    from airpanda.glexec.switchers import SwitchLadder

    glexec = config.glexec or find_glexec(os.environ)
    bwrap = shutil.which("bwrap")
    # What a payload that shares the pilots' account must not see: pilots, other payloads, the pilot's proxy.
    hide = [config.workdir.parent, config.scratch.parent, config.workdir, Path(config.proxy), *config.hide]
    with_proxy = Path(config.proxy).parent
    if with_proxy not in (Path("/"), Path("/etc"), Path("/usr")):
        hide.append(with_proxy)
    show = [path for path in (Path(config.ca_dir), *config.show) if os.path.exists(path)]
    return SwitchLadder.choose(
        config.identity_policy,
        glexec=Path(glexec) if glexec else None,
        bwrap=Path(bwrap) if bwrap else None,
        hide=hide,
        show=show,
    )


def _start_logging() -> None:
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)sZ %(levelname)s %(message)s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
