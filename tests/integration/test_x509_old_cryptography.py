"""Keys under the cryptography of Debian's own Python, whose check of the factors is left out: damage is still seen."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.need import absent
from support.rsa import composite_numbers, rsa_numbers, rsa_pem

import airpanda
from airpanda.x509 import pem

pytestmark = pytest.mark.integration

PYTHON = "/usr/bin/python3"
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from airpanda.x509 import pem
from airpanda.x509.errors import CredentialFileError
from cryptography.hazmat.primitives import serialization
def verdict(text):
    try:
        return pem.load_key(text.encode()).key_size
    except CredentialFileError as error:
        return str(error)
keys = json.load(sys.stdin)
print(json.dumps([verdict(text) for text in keys]))
try:  # elsewhere the library checks as ever
    serialization.load_pem_private_key(keys[-1].encode(), None)
    print("taken")
except ValueError:
    print("refused")
"""


def need_old_cryptography() -> None:
    asked = [PYTHON, "-I", "-c", "import cryptography; print(cryptography.__version__.split('.')[0])"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    except OSError:
        absent(f"NOT TESTED: there is no {PYTHON}")
    if done.returncode != 0 or int(done.stdout) >= 39:
        absent(f"NOT TESTED: {PYTHON} has no cryptography older than 39 (Debian 12's package python3-cryptography)")


def test_damaged_keys_are_refused_and_good_ones_are_not() -> None:
    need_old_cryptography()
    good, other = rsa_numbers("Alice Example"), rsa_numbers("another")
    bad = [[*good[:field], good[field] + change, *good[field + 1 :]] for field in range(8) for change in (1, 2, -2)]
    bad += [[*good[:2], *other[2:]], composite_numbers()]
    keys = [rsa_pem(*numbers).decode() for numbers in (good, *bad)]
    plugins = str(Path(airpanda.__file__).parent.parent)
    command = [PYTHON, "-I", "-B", "-c", PROGRAM, plugins]
    done = subprocess.run(command, input=json.dumps(keys), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    lines = done.stdout.splitlines()
    verdicts = json.loads(lines[0])
    assert verdicts[0] == pem.load_key(keys[0].encode()).key_size
    assert all("private key" in str(verdict) for verdict in verdicts[1:]), verdicts
    assert lines[1] == "refused"
