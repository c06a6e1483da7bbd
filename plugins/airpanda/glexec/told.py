"""What a launcher of ours says about a payload that is about to start, read by a pilot that believes nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from airpanda.core.errors import IdentitySwitchError
from airpanda.core.secret import Secret
from airpanda.core.text import clean
from airpanda.glexec.contract import INTERNAL_ERROR
from airpanda.glexec.ports import LaunchRecord
from airpanda.x509.certificates import fingerprint
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.errors import CredentialFileError

_TEXTS = ("dn", "issuer", "serial", "fingerprint", "launcher", "mapping")
_MAX_TEXT, _MAX_FQANS = 4096, 64
_KINDS = ("socket", "sudo", "root")


def read_record(started: Mapping[str, Any], proxies: Iterable[Secret[bytes]]) -> LaunchRecord:
    """The launcher's word on whose payload this is; it must be about one of these very proxies.

    Raises:
        IdentitySwitchError: something is missing, or it is about another credential; nothing may run then.
    """
    texts = {name: started.get(name) for name in _TEXTS}
    fqans, lease = started.get("fqans"), started.get("lease") or ""
    missing = sorted(name for name, value in texts.items() if not isinstance(value, str) or not value)
    if missing or not isinstance(fqans, list) or not isinstance(lease, str):
        raise _refused(f"the launcher's record does not say {', '.join(missing) or 'fqans and lease'}")
    if texts["launcher"] not in _KINDS:
        raise _refused(f"the launcher's record is of no known kind: {str(texts['launcher'])[:40]!r}")
    try:
        ours = [_read(proxy) for proxy in proxies]
    except CredentialFileError as error:
        raise _refused(f"the proxy cannot be compared with the launcher's record: {error}") from error
    if (texts["dn"], texts["fingerprint"]) not in ours:
        raise _refused("the launcher's record is about another credential than the one it was given")
    words = {name: clean(str(value))[:_MAX_TEXT] for name, value in texts.items()}
    names = tuple(clean(str(fqan))[:_MAX_TEXT] for fqan in fqans[:_MAX_FQANS])
    return LaunchRecord(fqans=names, lease=clean(lease)[:_MAX_TEXT], **words)


def _read(proxy: Secret[bytes]) -> tuple[str, str]:
    credential = ProxyCredential.from_pem(proxy.reveal())
    return credential.identity, fingerprint(credential.certificate)


def _refused(text: str) -> IdentitySwitchError:
    return IdentitySwitchError(f"{text}; the site must repair its launcher", exit_code=INTERNAL_ERROR)
