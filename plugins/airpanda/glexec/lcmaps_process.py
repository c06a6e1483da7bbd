"""Asking the site's LCMAPS about one proxy, in this process: to be called once, in a process of its own.

LCMAPS loads plug-ins, cannot be called twice, and may do as it likes; so the caller forks, gives up root, and ends.

Source: lcmaps/lcmaps_return_account_from_pem.h and lcmaps_account.h of LCMAPS 1.6.
"""

from __future__ import annotations

import ctypes
from typing import Any, Optional

from airpanda.glexec.contract import INTERNAL_ERROR, NOT_AUTHORISED


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


def ask_lcmaps(pem: bytes) -> tuple[int, Optional[dict[str, Any]]]:
    """0 and the account (uid, gids, lease), or 202 (LCMAPS cannot start) or 203 (it does not map this proxy)."""
    try:
        core = ctypes.CDLL("liblcmaps.so.0", mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL("liblcmaps_return_account_from_pem.so.0")
    except OSError:
        return INTERNAL_ERROR, None
    core.lcmaps_init.argtypes = [ctypes.c_void_p]
    library.lcmaps_return_account_from_pem.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(_Account)]
    account = _Account()
    if library.lcmaps_account_info_init(ctypes.byref(account)) or core.lcmaps_init(None):
        return INTERNAL_ERROR, None
    if library.lcmaps_return_account_from_pem(pem, -1, ctypes.byref(account)) or account.npgid < 1:
        return NOT_AUTHORISED, None
    lease = account.poolindex.decode("ascii", "replace") if account.poolindex else None
    gids = [*account.pgid_list[: account.npgid], *account.sgid_list[: account.nsgid]]
    return 0, {"uid": account.uid, "gids": gids, "lease": lease}
