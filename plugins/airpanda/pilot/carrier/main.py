"""``carrier PLAN``: one round of transfers, each tried once; a line of JSON for each on standard output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from types import FrameType, ModuleType
from typing import Any, Optional

from airpanda.pilot.carrier import dav_scheme, file_scheme, xroot_scheme
from airpanda.pilot.carrier.limit import allow, allow_s
from airpanda.pilot.carrier.outcome import CRASHED, UNSUPPORTED, Digest, Trouble

SCHEMES: dict[str, ModuleType] = {
    "file": file_scheme,
    "https": dav_scheme,
    "davs": dav_scheme,
    "root": xroot_scheme,
}


def main(argv: list[str]) -> int:
    """Do what the plan says. The exit code tells only whether every transfer has its line."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with open(argv[0], encoding="utf-8") as file:
        plan = json.load(file)
    for path in argv[:2]:
        with contextlib.suppress(OSError):  # the payload need not see them
            os.unlink(path)
    left = int(plan["max_bytes"])
    for transfer in plan["transfers"]:
        result: dict[str, Any] = {"lfn": transfer["lfn"]}
        try:
            allow(transfer["size"])
            digest = _move(transfer, left, str(plan["ca_dir"]))
            left -= digest.size
            result.update(digest.to_wire())
        except Trouble as trouble:
            result.update(why=trouble.why, detail=str(trouble), retry_after_s=trouble.retry_after_s)
        except OSError as error:  # of the sandbox itself, where no step has said it better
            result.update(why=Trouble.of(error, "").why, detail=f"{transfer['lfn']}: {error.strerror}")
        except Exception as error:  # noqa: BLE001 - outermost frame of one transfer: this one is told, the others go on
            result.update(why=CRASHED, detail=f"{type(error).__name__}: {error}")
        finally:
            allow_s(0)
        print(json.dumps(result), flush=True)
    return 0


def _move(transfer: dict[str, Any], max_bytes: int, ca_dir: str) -> Digest:
    scheme = SCHEMES.get(transfer["url"].partition(":")[0])
    if scheme is None:
        raise Trouble(UNSUPPORTED, "this pilot does not know its scheme")
    move = scheme.fetch if transfer["direction"] == "in" else scheme.send
    digest: Digest = move(transfer, max_bytes, ca_dir)
    return digest


def _end(number: int, frame: Optional[FrameType]) -> None:
    """An exception, so that what is half written is removed on the way out."""
    sys.exit(128 + number)
