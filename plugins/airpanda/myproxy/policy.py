"""MyProxy's patterns over DNs: written by owners and administrators, matched by servers. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Optional

from airpanda.core.errors import RequestError
from airpanda.core.identity import check_dn

MAX_PATTERN_CHARS = 4096
ANY_TEXT, ANY_CHARACTER = "any text", "any character"
_OPERATORS = frozenset("*+?()[]{}|^$")
_MAYBE_BACKSLASH = r"\\{0,1}"
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9.]*=|[0-9.]+=")

# A pattern becomes an anchored POSIX extended expression, character by character:
#     *  .*      \*  *        ?  .      \?  ?        .  \.      \.  .        \\  \        \c  \c
# so that a backslash before * ? and . does not make them literal, but takes their protection away.


def exactly(dn: str) -> str:
    """The pattern that matches this DN and no other.

    OpenSSL from 3.0.19 shows ``/`` and ``+`` inside a value with a backslash before it, others do not: the
    pattern matches both, so that it does not depend on the server's release.

    Raises:
        RequestError: not a DN.

    Source: gridcf/gct, myproxy/source/myproxy_server_config.c (regex_compare).
    """
    check_dn(dn)
    parts = []
    for position, character in enumerate(dn):
        if character == "+" or (character == "/" and not _ATTRIBUTE.match(dn, position + 1)):
            parts.append(_MAYBE_BACKSLASH.replace("\\", "\\\\"))
        if character in "*?":
            parts.append("\\\\\\" + character)
        elif character == "\\":
            parts.append("\\\\\\\\")
        else:
            parts.append(f"\\{character}" if character in _OPERATORS else character)
    return "".join(parts)


@lru_cache(maxsize=1024)
def parse(pattern: str) -> tuple[str, ...]:
    """A pattern as tokens: ``ANY_TEXT``, ``ANY_CHARACTER``, or one literal character each.

    Of the expressions that a pattern can become, only those without operators are taken: the others are hardly
    ever meant, and an expression by a stranger must not decide how long a match takes.

    Raises:
        RequestError: an operator, a lone backslash, or over 4096 characters.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise RequestError(f"a policy of {len(pattern)} characters is over the limit of {MAX_PATTERN_CHARS}")
    expression = _expression(pattern).replace(_MAYBE_BACKSLASH, "")
    tokens: list[str] = []
    position = 0
    while position < len(expression):
        character, following = expression[position], expression[position + 1 : position + 2]
        if character == "\\" and following and not following.isalnum() and following not in "<>`'":
            tokens.append(following)
        elif character == "." and following == "*":
            tokens.append(ANY_TEXT)
        elif character == "\\" or character in _OPERATORS:
            raise RequestError("a policy must have a backslash before each of + ( ) [ ] { } | ^ $ and two before \\*")
        else:
            tokens.append(ANY_CHARACTER if character == "." else character)
        position += 2 if character == "\\" or tokens[-1] == ANY_TEXT else 1
    return tuple(tokens)


def _expression(pattern: str) -> str:
    wild = {"*": ".*", "?": ".", ".": r"\."}
    out, escaped = [], False
    for character in pattern:
        if character == "\\" and not escaped:
            escaped = True
            continue
        if not escaped:
            out.append(wild.get(character, character))
        else:
            out.append(character if character in wild or character == "\\" else f"\\{character}")
        escaped = False
    return "".join(out) + ("\\" if escaped else "")


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
