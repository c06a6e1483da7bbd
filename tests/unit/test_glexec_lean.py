"""The launcher's lean import: everything is there that a certificate may need, and what was left out comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import airpanda

PLUGINS = Path(airpanda.__file__).parent.parent
START = f"import sys; sys.path.insert(0, {str(PLUGINS)!r})\nfrom airpanda.glexec.launcher import lean\n"


def run(program: str, *, lean: bool = True) -> str:
    """What a fresh interpreter prints that has imported the launcher in this way."""
    names = "airpanda.glexec.launcher.run, airpanda.glexec.launcher.credential"
    imported = f"with lean.imports():\n    import {names}\n" if lean else "import re\n"
    argv = [sys.executable, "-I", "-c", START + imported + program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_leaves_out_what_takes_long() -> None:
    heavy = ("dataclasses", "inspect", "tempfile", "bcrypt", "email.utils", "hashlib", "hmac", "random", "urllib.parse")
    heavy += ("base64", "threading", "_strptime", "selectors")
    assert run(f"print(*(name for name in {heavy} if name in sys.modules))") == "\n"


def test_what_comes_later_comes() -> None:
    """Each by a way that leads through the stand-in."""
    program = """
from pathlib import Path
from cryptography import x509
from cryptography.hazmat.primitives import constant_time
from cryptography.hazmat.primitives.asymmetric import rsa
key = rsa.generate_private_key(65537, 2048)
numbers = key.private_numbers()
print(Path("/a b").as_uri(), constant_time.bytes_eq(b"a", b"b"), constant_time.bytes_eq(b"a", b"a"))
factors = rsa.rsa_recover_prime_factors(numbers.public_numbers.n, 65537, numbers.d)
print(sorted(factors) == sorted([numbers.p, numbers.q]))
print(len(x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest))
import hashlib, random, urllib.parse
print(hashlib.sha1(b"").hexdigest()[:8], random.Random(1).randint(5, 5), urllib.parse.quote("a b"))
"""
    assert run(program) == "file:///a%20b False True\nTrue\n20\nda39a3ee 5 a%20b\n"


def test_certificates_are_read_as_ever() -> None:
    """With a name that is an e-mail address, whose reader is imported at that moment."""
    program = """
import datetime
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime(2026, 1, 1)
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
names = x509.SubjectAlternativeName([x509.RFC822Name("alice@grid.test"), x509.DNSName("grid.test")])
made = x509.CertificateBuilder(name, name, key.public_key(), 5, now, now).add_extension(names, False)
der = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
read = x509.load_der_x509_certificate(der)
print([str(one.value) for one in read.extensions[0].value], read.subject.rfc4514_string())
print(x509.Name.from_rfc4514_string("CN=a\\\\,b,O=c").rfc4514_string())
"""
    assert run(program) == "['alice@grid.test', 'grid.test'] CN=x\nCN=a\\,b,O=c\n"


def test_what_was_left_out_is_there_for_the_next_one() -> None:
    program = """
import re, email.utils
from cryptography.hazmat.primitives.serialization import ssh
print(email.utils.parseaddr("A <a@b>"), callable(ssh.load_ssh_public_key), type(re.compile("x")).__name__)
"""
    assert run(program) == "('A', 'a@b') True Pattern\n"


def test_nothing_depends_on_it() -> None:
    assert run("import airpanda.glexec.launcher.run as run\nprint(callable(run.conduct))", lean=False) == "True\n"
