"""One idea: Python functions on the grid, mapped over a list, and a file that one hands to the next."""

from __future__ import annotations

from airflow.sdk import dag

from airpanda.decorators.panda_task import panda_task


@panda_task(queue="DEMO", owner="alice", cores=1, outputs=["points.json"])
def throw(n: int) -> dict:
    import json
    import random
    from pathlib import Path as File

    draw = random.Random(n).random  # noqa: S311 - draws points, guards nothing
    inside = sum(draw() ** 2 + draw() ** 2 < 1 for _ in range(n))
    File("points.json").write_text(json.dumps({"inside": inside, "thrown": n}))
    return {"points": File("points.json"), "pi": 4 * inside / n}


@panda_task(queue="DEMO", owner="alice")
def combine(results: list) -> float:
    import json

    parts = [json.loads(result["points"].read_text()) for result in results]
    return 4 * sum(p["inside"] for p in parts) / sum(p["thrown"] for p in parts)


@dag(schedule=None, tags=["airpanda", "example"], doc_md=__doc__)
def function_on_the_grid() -> None:
    """Wire it; pilots are sent by another DAG."""
    combine(throw.expand(n=[100_000, 200_000, 300_000]))


function_on_the_grid()
