"""What a client token may be for: a closed set of groups of routes, one of which each route demands.

``GET`` demands ``read`` by itself. Any other route says which verb is its own, or no token that names verbs opens it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Verb(StrEnum):
    """A right of a client token that names some; within its owners and queues."""

    READ = "read"
    SUBMIT = "submit"
    KILL = "kill"
    RETRY = "retry"
    DEBUG = "debug"
    CREDENTIALS = "credentials"
    FILES = "files"
    PILOTS = "pilots"
    ADMIN = "admin"


MEANINGS: Mapping[Verb, str] = {
    Verb.READ: "look at jobs, panda tasks, files, logs, credentials without their secrets; fetch outputs",
    Verb.SUBMIT: "submit jobs",
    Verb.KILL: "kill jobs and panda tasks",
    Verb.RETRY: "give jobs and panda tasks another attempt",
    Verb.DEBUG: "have a pilot show what a running job does",
    Verb.CREDENTIALS: "register staged credentials and revoke them",
    Verb.FILES: "upload sandboxes",
    Verb.PILOTS: "send pilots and run their factory",
    Verb.ADMIN: "bans, retry rules and shares",
}
_DEMANDED: dict[Callable[..., Any], Verb] = {}


def demands(verb: Verb) -> Callable[[Endpoint], Endpoint]:
    """Say of a route's endpoint which verb it demands; below the line that makes it a route.

    Raises:
        TypeError: another verb is said of it already.
    """

    def mark(endpoint: Endpoint) -> Endpoint:
        if endpoint in _DEMANDED:
            raise TypeError(f"{endpoint} demands {_DEMANDED[endpoint]} already")
        _DEMANDED[endpoint] = verb
        return endpoint

    return mark


def verb_of(endpoint: Callable[..., Any] | None, method: str) -> Verb | None:
    """What this endpoint demands; None: nobody has said, which no token may have."""
    if endpoint in _DEMANDED:
        return _DEMANDED[endpoint]
    return Verb.READ if method.upper() == "GET" else None
