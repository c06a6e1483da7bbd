"""Secrets that only the holder of one RSA key can open: for channels on which others can read along.

A fresh AES-256-GCM key encrypts the secret, RSA-OAEP with SHA-256 encrypts that key. No I/O, no clock.
"""

from __future__ import annotations

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from airpanda.core.errors import CredentialError, RequestError
from airpanda.core.secret import Secret

_NONCE_BYTES = 12
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def seal(key: object, secret: Secret[str], *, purpose: str) -> str:
    """The secret as text that the key's private half opens, for the same ``purpose`` only.

    Raises:
        RequestError: the key is no RSA key.
    """
    if not isinstance(key, rsa.RSAPublicKey):
        raise RequestError("secrets are sealed for RSA keys only")
    inner, nonce = AESGCM.generate_key(256), os.urandom(_NONCE_BYTES)
    body = AESGCM(inner).encrypt(nonce, secret.reveal().encode(), purpose.encode())
    return base64.b64encode(key.encrypt(inner, _OAEP) + nonce + body).decode("ascii")


def unseal(key: object, sealed: str, *, purpose: str) -> Secret[str]:
    """What was sealed for this key and purpose.

    Raises:
        CredentialError: it was sealed for another key or purpose, or was changed.
    """
    wrong = "the sealed secret cannot be opened: it is for another key or another pilot, or was changed on its way"
    if not isinstance(key, rsa.RSAPrivateKey):
        raise CredentialError(wrong)
    try:
        data = base64.b64decode(sealed, validate=True)
        size = key.key_size // 8
        inner = key.decrypt(data[:size], _OAEP)
        nonce, body = data[size : size + _NONCE_BYTES], data[size + _NONCE_BYTES :]
        return Secret(AESGCM(inner).decrypt(nonce, body, purpose.encode()).decode())
    except (binascii.Error, ValueError, InvalidTag):
        raise CredentialError(wrong) from None
