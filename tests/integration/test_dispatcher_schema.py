"""Requests made from the dispatcher's own OpenAPI document, good and bad ones: never a 5xx, refusals are problems."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from support.dispatcher import World, job_database, template_database, world
from support.fuzz import examples
from support.postgres import postgres

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
EXAMPLES = examples(8)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
async def test_every_operation_answers_whatever_is_asked(world: World, mode: GenerationMode) -> None:
    pilot = await world.pilot()
    task = await world.submit(3)
    await pilot.acquire()
    client = world.client_headers(pilots=True)
    schema = schemathesis.openapi.from_dict(world.app.openapi())
    loop = asyncio.get_running_loop()
    seen: dict[str, set[int]] = {}

    def try_all() -> None:
        for found in schema.get_all_operations():
            operation = found.ok()
            headers = pilot.headers if operation.path.startswith("/v1/pilot/") else client
            codes = seen.setdefault(operation.label, set())
            _once(operation, mode, lambda case, headers=headers, codes=codes: answer(case, headers, codes))

    def answer(case: Any, headers: dict[str, str], codes: set[int]) -> None:
        response = asyncio.run_coroutine_threadsafe(_send(world, case, headers), loop).result(60)
        if response is None:
            return
        codes.add(response.status_code)
        assert response.status_code < 500, (case.operation.label, response.text)
        if response.status_code >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["status"] == response.status_code

    await asyncio.to_thread(try_all)
    assert sum(map(bool, seen.values())) > 20
    progress = await world.good("GET", f"/v1/task/{task['task_id']}/progress")
    assert sum(progress["counts"].values()) == 3


def _once(operation: Any, mode: GenerationMode, answer: Callable[[Any], None]) -> None:
    """Some cases of one operation."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        answer(case)

    with contextlib.suppress(Unsatisfiable):  # there is no wrong way to ask what takes nothing
        run()


async def _send(world: World, case: Any, headers: dict[str, str]) -> httpx.Response | None:
    """None: what no HTTP client could send."""
    wanted = case.as_transport_kwargs(base_url="http://dispatcher")
    given_headers = {name: str(value) for name, value in (wanted.get("headers") or {}).items()}
    body = wanted.get("data")
    content = json.dumps(wanted["json"]) if wanted.get("json") is not None else body
    try:
        request = world.http.build_request(
            wanted["method"],
            wanted["url"],
            params=wanted.get("params"),
            content=content if isinstance(content, bytes | str) else None,
            headers={**given_headers, **headers, "Content-Type": "application/json"},
        )
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError):
        return None
    return await world.http.send(request)
