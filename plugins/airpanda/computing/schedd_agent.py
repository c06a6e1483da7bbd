"""Speaks with one schedd by HTCondor's bindings, in a process of its own: a request on stdin, an answer on stdout.

The bindings block without a limit, keep their configuration for the whole process, and are C++ code that can end it. So
each call is one process, which its caller ends in time. Token and secrets come on stdin and lie in the private
directory ``place``, which the caller removes. Standard library and ``htcondor2`` only; nothing of airpanda is imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MARK = "airpanda-schedd "
_ATTRIBUTES = [
    "ClusterId",
    "ProcId",
    "JobStatus",
    "HoldReasonCode",
    "HoldReason",
    "RemoveReason",
    "ExitCode",
    "StageInFinish",
    "AirpandaTag",
    "AirpandaPilots",
]


def main() -> None:
    request = json.load(sys.stdin)
    os.umask(0o077)
    print(MARK + json.dumps(_answer(request, Path(request["place"]))), flush=True)


def _answer(request: dict[str, Any], place: Path) -> dict[str, Any]:
    try:
        import htcondor2
    except ImportError:
        return {"missing": True}
    try:
        schedd = _schedd(htcondor2, request, place)
        return _OPERATIONS[request["op"]](htcondor2, schedd, request, place)
    except htcondor2.HTCondorException as error:
        return {"error": str(error)}


def _schedd(htcondor2: Any, request: dict[str, Any], place: Path) -> Any:
    tokens = place / "tokens.d"
    tokens.mkdir()
    (tokens / "airpanda").write_text(request["token"] + "\n")
    settings = {
        "SEC_CLIENT_AUTHENTICATION": "REQUIRED",
        "SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
        "SEC_CLIENT_ENCRYPTION": "REQUIRED",
        "SEC_CLIENT_INTEGRITY": "REQUIRED",
        "SEC_TOKEN_DIRECTORY": str(tokens),
        **({"TRUST_DOMAIN": request["trust_domain"]} if request["trust_domain"] else {}),
    }
    for name, value in settings.items():
        htcondor2.param[name] = value
    collector = htcondor2.Collector(request["collector"])
    return htcondor2.Schedd(collector.locate(htcondor2.DaemonType.Schedd, request["schedd"] or None))


def _query(module: Any, schedd: Any, request: dict[str, Any], _place: Path) -> dict[str, Any]:
    """The account's own jobs that match; of those ``wanted`` that are gone from the queue, what the history says.

    Anybody may give a job our attributes. The schedd takes "my" from the authenticated identity, whatever a client
    says; it shows a queue superuser everybody's. The history knows no "my": only jobs of known numbers are asked for.

    Source: condor_schedd's command_query_job_ads.
    """
    ads = [
        _plain(ad) for ad in schedd.query(request["constraint"], _ATTRIBUTES, opts=module.QueryOpts.DefaultMyJobsOnly)
    ]
    seen = {(ad.get("ClusterId"), ad.get("ProcId")) for ad in ads}
    missing = [tuple(pair) for pair in request.get("wanted", []) if tuple(pair) not in seen]
    old: list[dict[str, Any]] = []
    if missing:
        # The schedd reads its files backwards until it has so many matches: what is not wanted must be none.
        old = [_plain(ad) for ad in schedd.history(_which(missing), _ATTRIBUTES, len(missing))]
    return {"ads": ads + [ad for ad in old if (ad.get("ClusterId"), ad.get("ProcId")) in missing]}


def _submit(module: Any, schedd: Any, request: dict[str, Any], place: Path) -> dict[str, Any]:
    for name, text in request["files"].items():
        path = place / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    os.chdir(place / "files")
    result = schedd.submit(module.Submit(request["description"]), count=request["copies"], spool=True)
    try:
        schedd.spool(result)
    except module.HTCondorException as error:  # the jobs are in the queue; perhaps they have their files, and run
        return {"error": str(error), "committed": True}
    finally:
        os.chdir("/")
    return {"cluster": result.cluster()}


def _remove(module: Any, schedd: Any, request: dict[str, Any], _place: Path) -> dict[str, Any]:
    schedd.act(module.JobAction.Remove, request["constraint"])
    return {}


def _leave(_module: Any, schedd: Any, request: dict[str, Any], _place: Path) -> dict[str, Any]:
    schedd.edit(request["constraint"], "LeaveJobInQueue", "false")
    return {}


_OPERATIONS = {"query": _query, "submit": _submit, "remove": _remove, "leave": _leave}


def _which(pairs: Iterable[tuple[int, int]]) -> str:
    """The constraint for exactly these (ClusterId, ProcId), with ranges: a thousand jobs are one line."""
    procs: dict[int, list[list[int]]] = {}
    for cluster, proc in sorted(set(pairs)):
        ranges = procs.setdefault(cluster, [])
        if ranges and ranges[-1][1] == proc - 1:
            ranges[-1][1] = proc
        else:
            ranges.append([proc, proc])
    return " || ".join(
        f"(ClusterId == {cluster} && ProcId >= {low} && ProcId <= {high})"
        for cluster, ranges in procs.items()
        for low, high in ranges
    )


def _plain(ad: Any) -> dict[str, Any]:
    """An ad's numbers and texts. What it does not have is a value of another type, not None."""
    found = {name: ad.get(name) for name in _ATTRIBUTES}
    return {name: value for name, value in found.items() if type(value) in (int, str)}


if __name__ == "__main__":
    main()
