"""Passphrases at rest."""

from __future__ import annotations

import pytest
from cryptography.fernet import Fernet

from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret
from airpanda.credentials.vault import Vault


def key() -> Secret[str]:
    return Secret(Fernet.generate_key().decode())


def test_no_key_and_bad_keys_are_refused_without_being_shown() -> None:
    with pytest.raises(ConfigurationError, match="fernet_key"):
        Vault([])
    with pytest.raises(ConfigurationError) as caught:
        Vault([key(), Secret("a-key-that-is-not-one")])
    assert "a-key-that-is-not-one" not in str(caught.value)


def test_keys_rotate() -> None:
    old, new = key(), key()
    sealed = Vault([old]).seal(Secret("passphrase"))
    assert b"passphrase" not in sealed
    assert Vault([new, old]).open(sealed).reveal() == "passphrase"
    assert Vault([new]).open(Vault([new, old]).seal(Secret("x"))).reveal() == "x"
    with pytest.raises(ConfigurationError, match="old key back"):
        Vault([new]).open(sealed)
