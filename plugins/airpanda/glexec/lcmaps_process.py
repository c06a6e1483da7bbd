"""Asking the site's LCMAPS about one proxy, in this process: to be loaded and called once, in a process of its own.

LCMAPS loads plug-ins, cannot be called twice, and may do as it likes; so the caller forks, gives up root, and ends.

Source: lcmaps/lcmaps_return_account_from_pem.h and lcmaps_account.h of LCMAPS 1.6.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any, Optional

from airpanda.glexec.contract import NOT_AUTHORISED

_PREPARED = 0x2 | 0x4 | 0x8 | 0x40
"""OPENSSL_INIT_LOAD_CRYPTO_STRINGS, ADD_ALL_CIPHERS, ADD_ALL_DIGESTS, LOAD_CONFIG: openssl/crypto.h."""


class _Account(ctypes.Structure):
    """lcmaps_account_info_t."""

    _fields_ = [
        ("uid", ctypes.c_uint),
        ("pgid_list", ctypes.POINTER(ctypes.c_uint)),
        ("npgid", ctypes.c_int),
        ("sgid_list", ctypes.POINTER(ctypes.c_uint)),
        ("nsgid", ctypes.c_int),
        ("poolindex", ctypes.c_char_p),
    ]


class Lcmaps:
    """The site's LCMAPS, loaded with the plug-ins of its policy, as the environment says.

    Raises:
        OSError: it cannot start.
    """

    def __init__(self) -> None:
        core = ctypes.CDLL("liblcmaps.so.0", mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL("liblcmaps_return_account_from_pem.so.0")
        core.lcmaps_init.argtypes = [ctypes.c_void_p]
        self._library.lcmaps_return_account_from_pem.argtypes = [
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.POINTER(_Account),
        ]
        with contextlib.suppress(OSError):  # what the plug-ins will want of OpenSSL, while there is time
            ctypes.CDLL("libcrypto.so.3").OPENSSL_init_crypto(ctypes.c_uint64(_PREPARED), None)
        self._account = _Account()
        if self._library.lcmaps_account_info_init(ctypes.byref(self._account)) or core.lcmaps_init(None):
            raise OSError("LCMAPS cannot be initialised")

    def ask(self, pem: bytes) -> tuple[int, Optional[dict[str, Any]]]:
        """0 and the account (uid, gids, lease), or 203 (it does not map this proxy)."""
        account = self._account
        failed = self._library.lcmaps_return_account_from_pem(pem, -1, ctypes.byref(account))
        if failed or account.npgid < 1:
            return NOT_AUTHORISED, None
        lease = account.poolindex.decode("ascii", "replace") if account.poolindex else None
        gids = [*account.pgid_list[: account.npgid], *account.sgid_list[: account.nsgid]]
        return 0, {"uid": account.uid, "gids": gids, "lease": lease}
