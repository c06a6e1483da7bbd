"""The process in which the site's LCMAPS maps one proxy: PEM on stdin, the account as JSON on stdout.

It runs as a file of its own, under an unprivileged account, because LCMAPS loads plug-ins and cannot be called twice.
Exit codes: 0 mapped, 202 LCMAPS cannot start, 203 it does not map this proxy.

Source: lcmaps/lcmaps_return_account_from_pem.h and lcmaps_account.h of LCMAPS 1.6.
"""

import ctypes
import json
import os
import sys

_MAX_PEM = 65536


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


def main() -> int:
    """Map the proxy on stdin."""
    answer = os.dup(1)
    os.dup2(2, 1)  # a plug-in that prints must not spoil the answer
    try:
        core = ctypes.CDLL("liblcmaps.so.0", mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL("liblcmaps_return_account_from_pem.so.0")
    except OSError as error:
        print(error, file=sys.stderr)
        return 202
    core.lcmaps_init.argtypes = [ctypes.c_void_p]
    library.lcmaps_return_account_from_pem.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(_Account)]
    pem, account = sys.stdin.buffer.read(_MAX_PEM), _Account()
    if library.lcmaps_account_info_init(ctypes.byref(account)) or core.lcmaps_init(None):
        return 202
    if library.lcmaps_return_account_from_pem(pem, -1, ctypes.byref(account)) or account.npgid < 1:
        return 203
    lease = account.poolindex.decode("ascii", "replace") if account.poolindex else None
    gids = [*account.pgid_list[: account.npgid], *account.sgid_list[: account.nsgid]]
    os.write(answer, json.dumps({"uid": account.uid, "gids": gids, "lease": lease}).encode("ascii"))
    library.lcmaps_account_info_clean(ctypes.byref(account))
    core.lcmaps_term()
    return 0


if __name__ == "__main__":
    sys.exit(main())
