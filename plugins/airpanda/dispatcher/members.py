"""How much there is in a JSON body, counted before anything is made of it: no parser is needed for that.

Two bytes of a body can cost a kilobyte: a list in a list, or a surplus key that is told for itself. What a body of
some size may hold is bounded by what one of that size holds that means something.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST_MEMBERS = 10_000
"""Of one object. What is wrong with each of them is told for itself."""
MOST_ELEMENTS = 100_000
"""Of one list: the jobs of a submission."""
MOST_DEPTH = 32
_LEAF = re.compile(rb"[\[{][,:]*[\]}]")
_NO_STRUCTURE = bytes(set(range(256)) - set(b"{}[],:"))
_WINDOW = 1024 * 1024


@dataclass(frozen=True)
class Most:
    """How many values (of members and of lists, roughly) and how many objects and lists a body may have."""

    values: int
    containers: int


FEW = Most(values=400_000, containers=50_000)
"""Of two megabytes at most."""
MANY = Most(values=8_000_000, containers=1_200_000)
"""Of a submission: 100 000 jobs with five files each."""


def surplus(content: bytes, most: Most) -> str:
    """What there is more of than may be, as the end of a sentence; empty: nothing.

    Exact for JSON. Of what is none, what comes before the first mistake is counted at least.
    """
    if content.count(b",") + content.count(b":") <= MOST_MEMBERS:
        return ""  # of most bodies that is all; what stands in strings may be counted here
    values = containers = 0
    open_yet = b""
    for structure in _structure(content):
        values += structure.count(b",") + structure.count(b":")
        containers += structure.count(b"[") + structure.count(b"{")
        if values > most.values:
            return f"more than {most.values} values"
        if containers > most.containers:
            return f"more than {most.containers} objects and lists"
        open_yet, says = _without_leaves(open_yet + structure)
        if says:
            return says
    return ""


def _without_leaves(structure: bytes) -> tuple[bytes, str]:
    """What is left when all that is closed is taken away, from the innermost outwards; and what is too much in it."""
    while True:
        if b",:" * MOST_MEMBERS in structure:
            return structure, f"an object with more than {MOST_MEMBERS} members"
        if b"," * MOST_ELEMENTS in structure:
            return structure, f"a list with more than {MOST_ELEMENTS} elements"
        left = _LEAF.sub(b"", structure)
        if len(left) == len(structure):
            break
        structure = left
    if structure.count(b"[") + structure.count(b"{") > MOST_DEPTH:
        return structure, f"more than {MOST_DEPTH} levels"
    return structure, ""


def _structure(content: bytes) -> Iterator[bytes]:
    """Brackets, braces, commas and colons that stand in no string, a part of the body after the other."""
    begin, is_inside = 0, False
    while begin < len(content):
        end = begin + _WINDOW
        part = content[begin:end]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:  # no part ends in the middle of an escape
            end += 1
        part = content[begin:end].replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.split(b'"')
        yield b"".join(pieces[1 if is_inside else 0 :: 2]).translate(None, _NO_STRUCTURE)
        is_inside ^= len(pieces) % 2 == 0
        begin = end
