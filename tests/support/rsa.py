"""RSA keys of whatever numbers, as nobody's library would write them."""

from __future__ import annotations

import base64
import math

from airpanda.x509 import der
from support.chains import key


def rsa_pem(n: int, e: int, d: int, p: int, q: int, dp: int, dq: int, qi: int) -> bytes:
    """PKCS#1 of these numbers."""
    fields = [
        der.wrap(der.INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))
        for number in (0, n, e, d, p, q, dp, dq, qi)
    ]
    text = base64.encodebytes(der.wrap(der.SEQUENCE, b"".join(fields)))
    return b"-----BEGIN RSA PRIVATE KEY-----\n" + text + b"-----END RSA PRIVATE KEY-----\n"


def rsa_numbers(who: str) -> list[int]:
    """Those of a good key, in the order of ``rsa_pem``."""
    own = key(who).private_numbers()
    public = own.public_numbers
    return [public.n, public.e, own.d, own.p, own.q, own.dmp1, own.dmq1, own.iqmp]


def composite_numbers() -> list[int]:
    """A key whose numbers fit each other, and one of whose factors is none."""
    (_, e, _, p1, q1, *_), q = rsa_numbers("Alice Example"), rsa_numbers("another")[3]
    p = p1 * q1
    d = pow(e, -1, math.lcm(p - 1, q - 1))
    return [p * q, e, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p)]
