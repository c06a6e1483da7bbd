"""What can be wrong with a credential.

::

    CredentialError
    ├── CredentialFileError    the file or the bytes are no usable credential
    ├── ChainError             a certificate chain is refused; ``rule`` and ``subject`` say why and where
    │   ├── MalformedChainError    it is no proxy chain at all: order, names, signatures, a CA issuing a proxy
    │   └── RefusedChainError      it is one, but trust, time, revocation or strength forbid its use
    └── VomsError              the VOMS attributes in a chain are refused
"""

from __future__ import annotations

from airpanda.core.errors import CredentialError


class CredentialFileError(CredentialError):
    """The bytes or the file are no usable credential; the text never quotes them."""

    code = "credential-file"


class ChainError(CredentialError):
    """A certificate chain is refused.

    Attributes:
        rule: a stable word, such as ``expired``, ``revoked`` or ``issuer-name``.
        subject: the certificate concerned, in one-line form; empty where none is.
    """

    code = "chain"

    def __init__(self, rule: str, subject: str, reason: str) -> None:
        super().__init__(f"{subject or 'the chain'}: {reason}")
        self.rule = rule
        self.subject = subject


class MalformedChainError(ChainError):
    """The certificates are no proxy chain."""

    code = "chain-malformed"


class RefusedChainError(ChainError):
    """The chain is well formed, but its use is forbidden."""

    code = "chain-refused"


class VomsError(CredentialError):
    """The attribute certificate in a proxy is refused."""

    code = "voms"
