"""What must hold of an owner's own credential before anything is made from it, or sent anywhere."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Optional

from airpanda.x509.chain import verify_chain
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.trust import TrustStore
from airpanda.x509.voms import VomsDirectory, verify_attributes


def verified_fqans(proxy: ProxyCredential, *, ca_dir: Path, vomsdir: Optional[Path], now: datetime) -> list[str]:
    """The VOMS attributes of a credential whose chain holds, primary first; none without a ``vomsdir``.

    Raises:
        CredentialError: the chain (revocation included) or an attribute certificate does not verify; the owner must
            renew it.
        ConfigurationError: a directory cannot be read.
    """
    trust = TrustStore.from_directory(ca_dir)
    verify_chain(proxy.certificates, trust=trust, now=now)
    if vomsdir is None:
        return []
    directory = VomsDirectory.from_directory(vomsdir)
    found = verify_attributes(proxy.certificates, vomsdir=directory, trust=trust, now=now)
    return [str(fqan) for attributes in found for fqan in attributes.fqans]
