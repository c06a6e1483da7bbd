"""The kernel's keyrings from inside of a payload: a script that puts a key into a ring, or looks for it."""

from __future__ import annotations

import subprocess
import sys

from support.need import absent

SESSION, USER, USER_SESSION, PERSISTENT = "-3", "-4", "-5", "persistent"

KEYS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
libc.syscall.restype = ctypes.c_long
def call(*words):
    return libc.syscall(*(word if isinstance(word, bytes) else ctypes.c_long(word) for word in words))
def keyctl(*words):
    return call(number[1], *words)
ring = keyctl(22, -1, -3) if sys.argv[2] == "persistent" else int(sys.argv[2])
if sys.argv[1] == "join":
    assert keyctl(1, 0) > 0
if sys.argv[1] in ("put", "join"):
    assert call(number[0], b"user", b"airpanda", b"canary", 6, ring) > 0
found = keyctl(10, ring, b"user", b"airpanda", 0)
print("found" if found > 0 else "none", flush=True)
if sys.argv[3:]:
    os.execv(sys.argv[3], sys.argv[3:])
"""


def need_keyrings() -> None:
    """Skip (in CI fail) on a kernel without keyrings."""
    done = subprocess.run([sys.executable, "-c", KEYS, "join", SESSION], capture_output=True, timeout=60)
    if done.returncode != 0:
        absent("NOT TESTED: this kernel has no keyrings")
