"""A refusal with gLExec's code, and which error of other rooms becomes which code."""

from __future__ import annotations

from airpanda.core.errors import (
    AirpandaError,
    ConfigurationError,
    CredentialError,
    IdentitySwitchError,
    NotAuthorisedError,
)
from airpanda.glexec.contract import CLIENT_ERROR, INTERNAL_ERROR, NOT_AUTHORISED
from airpanda.x509.errors import CredentialFileError, MalformedChainError


def client_error(text: str) -> IdentitySwitchError:
    """201: the pilot must act."""
    return IdentitySwitchError(text, exit_code=CLIENT_ERROR)


def internal_error(text: str) -> IdentitySwitchError:
    """202: the site must act."""
    return IdentitySwitchError(text, exit_code=INTERNAL_ERROR, transient=True)


def not_authorised(text: str) -> IdentitySwitchError:
    """203: the site does not want this."""
    return IdentitySwitchError(text, exit_code=NOT_AUTHORISED, transient=True)


def refusal(error: AirpandaError) -> IdentitySwitchError:
    """The refusal that an error of another room amounts to. What is not known is the site's fault, never a pass."""
    if isinstance(error, IdentitySwitchError):
        return error
    if isinstance(error, (CredentialFileError, MalformedChainError)):
        return client_error(str(error))
    if isinstance(error, (CredentialError, NotAuthorisedError)):
        return not_authorised(str(error))
    if isinstance(error, ConfigurationError):
        return internal_error(str(error))
    return internal_error(f"{type(error).__name__}: {error}")
