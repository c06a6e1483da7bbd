"""Numbers of sensors: what their templates have rendered to, and how long they pause."""

from __future__ import annotations

import re
from typing import Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowFailException

FASTEST_POLL_S = 1.0
_WHOLE = re.compile(r"[0-9]{1,18}")


def pause_of(sensor: BaseSensorOperator) -> float:
    """Seconds between two questions of a trigger: the sensor's ``poke_interval``, which Airflow lets be 0."""
    return max(float(sensor.poke_interval), FASTEST_POLL_S)


def number_of(sensor: BaseSensorOperator, field: str) -> int:
    """The argument as a number, 0 or more.

    Raises:
        AirflowFailException: it is none; asking again changes nothing.
    """
    value: Any = getattr(sensor, field)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        is_now = "is empty: its template, or the XCom that it names, has rendered to nothing"
    else:
        is_now = f"is {str(value)[:60]!r}, and must be a whole number, 0 or more"
    raise AirflowFailException(f"task {sensor.task_id}: {field} {is_now}; correct the DAG")
