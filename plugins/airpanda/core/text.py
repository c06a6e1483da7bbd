"""Text of others, made fit to be stored and shown."""

from __future__ import annotations

import re
from typing import Optional

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PEM_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def clean(text: str) -> str:
    """No control characters but newline and tab: nothing that commands a terminal."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def whole_number(text: str) -> Optional[int]:
    """The number in ASCII digits, such as an HTTP header's; None for anything else, and for more than 18 of them."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def without_keys(text: str) -> str:
    """No PEM private keys; one without its end takes the rest of the text with it."""
    return _PEM_KEY.sub("[private key removed]", text)
