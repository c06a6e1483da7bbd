"""MyProxy's patterns over DNs: written by owners and administrators, matched by servers. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Optional

from airpanda.core.errors import RequestError
from airpanda.core.identity import check_dn

MAX_PATTERN_CHARS = 4096
_SPECIAL = frozenset("\\.*?+()[]{}|^$")
_OPERATORS = frozenset("+()[]{}|^$")
_MAYBE_BACKSLASH = r"\\{0,1}"
ANY_TEXT, ANY_CHARACTER = "any text", "any character"
_WILD = {"*": ANY_TEXT, "?": ANY_CHARACTER}
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9.]*=|[0-9.]+=")


def exactly(dn: str) -> str:
    """The pattern that matches this DN and no other.

    OpenSSL from 3.0.19 shows ``/`` and ``+`` inside a value with a backslash before it, others do not: the
    pattern matches both, so that it does not depend on the server's release.

    Raises:
        RequestError: not a DN.
    """
    check_dn(dn)
    parts = []
    for position, character in enumerate(dn):
        inner = character == "+" or (character == "/" and not _ATTRIBUTE.match(dn, position + 1))
        escaped = f"\\{character}" if character in _SPECIAL else character
        parts.append(_MAYBE_BACKSLASH + escaped if inner else escaped)
    return "".join(parts)


@lru_cache(maxsize=1024)
def parse(pattern: str) -> tuple[str, ...]:
    """A pattern as tokens: ``*`` any text, ``?`` one character, a backslash escapes the next one.

    The original compiles the rest as a POSIX extended expression. Its other operators are refused here: they
    are hardly ever meant, and an expression by a stranger must not decide how long a match takes.

    Returns:
        ``ANY_TEXT``, ``ANY_CHARACTER`` or one literal character each.

    Raises:
        RequestError: an operator, a lone backslash at the end, or over 4096 characters.

    Source: gridcf/gct, myproxy/source/myproxy_server_config.c (regex_compare).
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise RequestError(f"a policy of {len(pattern)} characters is over the limit of {MAX_PATTERN_CHARS}")
    tokens = []
    characters = iter(pattern.replace(_MAYBE_BACKSLASH, ""))
    for character in characters:
        if character == "\\":
            tokens.append(next(characters, ""))
        elif character in _WILD:
            tokens.append(_WILD[character])
        else:
            tokens.append("" if character in _OPERATORS else character)
    if "" in tokens:
        raise RequestError("a policy must have a backslash before each of \\ + ( ) [ ] { } | ^ $")
    return tuple(tokens)


def matches(pattern: Optional[str], dn: str) -> bool:
    """Whether a whole DN fits a pattern; no pattern fits nobody. Takes length times length at most.

    Raises:
        RequestError: not a pattern.
    """
    if pattern is None:
        return False
    tokens = parse(pattern)
    at = position = 0
    star, resume = -1, 0
    while position < len(dn):
        if at < len(tokens) and tokens[at] == ANY_TEXT:
            star, resume = at, position
            at += 1
        elif at < len(tokens) and tokens[at] in (ANY_CHARACTER, dn[position]):
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(token == ANY_TEXT for token in tokens[at:])
