"""A value that must not be shown: passphrases, tokens, private keys."""

from __future__ import annotations

from typing import Generic, TypeVar, Union

T = TypeVar("T", bound=Union[str, bytes])

_SHOWN = "Secret('***')"


class Secret(Generic[T]):
    """Holds one secret. ``reveal()`` is the only way out, so that every use can be found by name.

    It has no useful ``repr``, ``str`` or ``format``, refuses pickling and JSON, and compares in constant time.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        if not isinstance(value, (str, bytes)):
            raise TypeError("a secret is text or bytes")
        self._value = value

    @classmethod
    def random(cls) -> Secret[str]:
        """A fresh token of 256 random bits, 43 characters of URL-safe base64."""
        import secrets  # where needed: importing it takes a launcher longer than its own rules

        return Secret(secrets.token_urlsafe(32))

    def reveal(self) -> T:
        """The value itself. Do not log, raise or store what comes back."""
        return self._value

    def __repr__(self) -> str:
        return _SHOWN

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return _SHOWN

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        import hmac

        return hmac.compare_digest(_as_bytes(self._value), _as_bytes(other._value))

    def __hash__(self) -> int:
        raise TypeError("a secret is not hashable")

    def __reduce__(self) -> str:
        raise TypeError("a secret cannot be pickled")


def _as_bytes(value: Union[str, bytes]) -> bytes:
    return value.encode() if isinstance(value, str) else value
