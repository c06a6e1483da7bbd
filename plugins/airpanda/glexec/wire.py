"""Messages between the client program and the launcher's socket. Bytes only; imports little, for a fast start.

A request is a frame that comes with four descriptors (stdin, stdout, stderr, working directory). After it, each
byte from the client is a signal to forward; the end of the stream means that the client is gone. The launcher
answers once, with a frame. A frame is a 4-byte length in network order and that much JSON. Before a payload may start
there is an empty frame: without an answer after that one, the payload may have run.

``json`` is imported where it is needed only: for the client its import takes longer than the whole conversation.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("!I")
MAX_FRAME = 2 * 1024 * 1024
DESCRIPTORS = 4
STARTED = HEADER.pack(0)
# By number, as on Linux: importing ``signal`` costs the client more than the rest of this file.
FORWARDED = (1, 2, 3, 10, 12, 15, 18)  # HUP INT QUIT USR1 USR2 TERM CONT


def frame(message: object) -> bytes:
    """One frame."""
    import json

    return framed(json.dumps(message, separators=(",", ":")).encode("ascii"))


def framed(body: bytes) -> bytes:
    """One frame around JSON that is made already."""
    return HEADER.pack(len(body)) + body


def request_frame(argv: list[str], environ: dict[str, str]) -> bytes:
    """The frame of a request, by the C function behind ``json``."""
    from _json import encode_basestring_ascii as quoted

    words = ",".join(map(quoted, argv))
    pairs = ",".join(f"{quoted(name)}:{quoted(value)}" for name, value in environ.items())
    return framed(f'{{"argv":[{words}],"environ":{{{pairs}}}}}'.encode("ascii"))


def body_length(header: bytes) -> int:
    """Length of the body that follows.

    Raises:
        ValueError: over the limit of 2 MiB.
    """
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
    return int(length)


def parse_request(body: bytes) -> tuple[list[str], dict[str, str]]:
    """Command line and GLEXEC_* variables of a request.

    Raises:
        ValueError: not a request.
    """
    import json

    message = json.loads(body)
    if not isinstance(message, dict) or set(message) != {"argv", "environ"}:
        raise ValueError("not a request")
    argv, environ = message["argv"], message["environ"]
    if not isinstance(argv, list) or not isinstance(environ, dict):
        raise ValueError("not a request")
    texts = [*argv, *environ, *environ.values()]
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise ValueError("a request holds texts without NUL only")
    return argv, environ


def parse_answer(body: bytes) -> tuple[int, str]:
    """Exit code and message for the caller.

    Raises:
        ValueError: not an answer.
    """
    head, tail = b'{"exit":', b',"message":""}'
    if body.startswith(head) and body.endswith(tail):
        return int(body[len(head) : -len(tail)]), ""
    import json

    message = json.loads(body)
    return int(message["exit"]), str(message["message"])
