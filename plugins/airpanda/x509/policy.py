"""Globus signing policies: which subjects a CA may certify. Text to rules, no I/O.

Source: Globus GSI C, globus_gsi_callback (``ca-signing-policy.conf``, EACL syntax).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

_SYNONYMS = (("/Email=", "/emailAddress="), ("/E=", "/emailAddress="), ("/USERID=", "/UID="))


class SigningPolicy:
    """The subjects that each CA of one policy file may certify; whom it does not name may certify nobody."""

    def __init__(self, subjects: Mapping[str, Iterable[str]]) -> None:
        self._rules = {normal_dn(ca): [_pattern(text) for text in patterns] for ca, patterns in subjects.items()}

    @classmethod
    def parse(cls, text: str) -> SigningPolicy:
        """Read the text of a ``.signing_policy`` file. An entry that cannot be read allows nothing.

        Raises:
            ValueError: a line that is no EACL.
        """
        subjects: dict[str, list[str]] = {}
        ca, may_sign = "", False
        for words in filter(None, map(_words, text.splitlines())):
            if len(words) != 3:
                raise ValueError(f"a signing policy line of {len(words)} words")
            keyword, _, value = words
            if keyword == "access_id_CA":
                ca, may_sign = value, False
            elif keyword in ("pos_rights", "neg_rights"):
                may_sign = keyword == "pos_rights" and value == "CA:sign"
            elif keyword == "cond_subjects":
                if may_sign:
                    subjects.setdefault(ca, []).extend(shlex.split(value))
            else:
                raise ValueError(f"a signing policy line that starts with {keyword[:40]!r}")
        return cls(subjects)

    def allows(self, ca_dn: str, subject_dn: str) -> bool:
        """Whether the CA may certify the subject."""
        subject = normal_dn(subject_dn)
        return any(pattern.fullmatch(subject) for pattern in self._rules.get(normal_dn(ca_dn), ()))


def _words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def _pattern(text: str) -> re.Pattern[str]:
    """``*`` is any text and ``?`` any character; all else is itself."""
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(c, re.escape(c)) for c in normal_dn(text)), re.DOTALL)


def normal_dn(dn: str) -> str:
    """The DN with the present names of attributes for those that older programs printed."""
    for old, new in _SYNONYMS:
        dn = dn.replace(old, new)
    return dn
