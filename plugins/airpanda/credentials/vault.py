"""Passphrases at rest: sealed with Airflow's Fernet keys, the newest first, older ones still open."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret


class Vault:
    """Seals with the first key, opens with any.

    Raises:
        ConfigurationError: no key, or one that is no Fernet key. Airflow would then store secrets in the clear; we do
            not.
    """

    key_ids: list[str]
    """Names of the keys, the newest first; they tell nothing of the keys."""

    def __init__(self, keys: Sequence[Secret[str]]) -> None:
        if not keys:
            raise ConfigurationError("[core] fernet_key is empty: staged passphrases cannot be sealed; set a key")
        try:
            self._fernet = MultiFernet([Fernet(key.reveal()) for key in keys])
        except ValueError:
            raise ConfigurationError("[core] fernet_key holds something that is no Fernet key") from None
        self.key_ids = [_key_id(key) for key in keys]

    def seal(self, secret: Secret[str]) -> bytes:
        return self._fernet.encrypt(secret.reveal().encode())

    def open(self, sealed: bytes) -> Secret[str]:
        """The secret.

        Raises:
            ConfigurationError: sealed with a key that is not configured any more.
        """
        try:
            return Secret(self._fernet.decrypt(sealed).decode())
        except InvalidToken:
            raise ConfigurationError(
                "a staged passphrase was sealed with a key that is no longer in [core] fernet_key:"
                " put the old key back behind the new one, or stage the credential again"
            ) from None


def _key_id(key: Secret[str]) -> str:
    """A key has 256 random bits: part of a digest gives nothing of it away."""
    return hashlib.sha256(b"airpanda fernet key " + key.reveal().encode()).hexdigest()[:16]
