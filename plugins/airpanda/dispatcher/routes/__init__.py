"""The verbs, by who calls them. Each router carries the authentication of its callers."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

MAX_ID = 2**63 - 1
Id = Annotated[int, Path(ge=1, le=MAX_ID)]
JobIds = Annotated[list[Annotated[int, Query(ge=1, le=MAX_ID)]], Query(min_length=1, max_length=1000)]
AttemptNr = Annotated[int, Path(ge=1, le=2**31 - 1)]
LfnInPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,249}$")]
