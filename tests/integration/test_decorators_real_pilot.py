"""Decorated functions through everything real but Airflow: gateway, MyProxy, pilots, launcher, the owner's account."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from support.dispatcher import job_database, template_database
from support.launcher import ALICE_UID
from support.pilot_chain import Chain, chain, myproxy, site
from support.postgres import postgres

from airpanda.decorators.function import result_of
from airpanda.decorators.panda_task import RESULT, PandaFunctionOperator

__all__ = ["chain", "job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]


def job_of(function: Any, *args: Any, outputs: tuple[str, ...] = (), **needs: Any) -> dict[str, Any]:
    made = PandaFunctionOperator(
        task_id=function.__name__, python_callable=function, op_args=list(args), declared=outputs, needs=needs,
        payload_owner="alice", panda_queue="DEMO",
    )  # fmt: skip
    (spec,) = made.specs()
    return spec.model_dump(mode="json")


def write(name: str, words: list[str]) -> Any:
    import os
    from pathlib import Path as P

    P(name).write_text(" ".join(words))
    return {"uid": os.getuid(), "file": P(name)}


def count(file: Path) -> int:
    return len(file.read_text().split())


def fail(n: int) -> None:
    raise ValueError(f"there are only {n} events")


def test_functions_run_as_their_owner_and_hand_files_on(chain: Chain) -> None:
    good = chain.submit("alice", job_of(write, "words.txt", ["one", "two"], outputs=("words.txt",)))
    bad = chain.submit("alice", job_of(fail, 3, max_attempt=1))
    handles = chain.send_pilots(1)
    try:
        assert chain.wait(good["task_id"]) == {"finished": 1}, chain.logs(handles)
    except AssertionError:
        print(chain.jobs(good["task_id"]), chain.logs(handles), chain.gateway.log[-3000:])
        raise
    assert chain.wait(bad["task_id"]) == {"failed": 1}
    (job,) = chain.jobs(good["task_id"])
    outputs = {file["lfn"]: file for file in job["outputs"]}
    text = chain.http.get(f"/v1/file/{job['panda_id']}/{RESULT}").text
    result = result_of(text, outputs)
    assert result == {"uid": ALICE_UID, "file": outputs["words.txt"]}
    log = chain.http.get(f"/v1/job/{bad['first_panda_id']}/log").text
    assert log.rstrip().splitlines()[-1] == "panda_task: the function fail raised ValueError: there are only 3 events"
    assert 'File "panda_function.py", line 2, in fail' in log

    reference = {key: outputs["words.txt"][key] for key in ("lfn", "source", "size", "sha256")}
    words = b"uploaded by the submitter"
    uploaded = chain.http.put(f"/v1/file/sandbox/alice/{hashlib.sha256(words).hexdigest()}", content=words)
    by_sandbox = job_of(count, reference | {"source": uploaded.json()["source"]})
    sandbox = chain.submit("alice", by_sandbox)
    after = chain.submit("alice", job_of(count, reference))
    handles = chain.send_pilots(1)
    assert chain.wait(after["task_id"]) == {"finished": 1}, chain.logs(handles)
    assert chain.wait(sandbox["task_id"]) == {"finished": 1}, chain.logs(handles)
    assert chain.http.get(f"/v1/file/{sandbox['first_panda_id']}/{RESULT}").text == "4"
    assert chain.http.get(f"/v1/file/{after['first_panda_id']}/{RESULT}").text == "2"
