"""gLExec's contract: hostile environments first, then the codes and where the launcher is looked for."""

from __future__ import annotations

import base64
import signal
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpanda.core.errors import RequestError
from airpanda.glexec import contract
from airpanda.glexec.wrapped import decode_environment, encode_environment


def wrap(*pairs: bytes) -> str:
    return base64.b64encode(zlib.compress(b" ".join(map(base64.b64encode, pairs)))).decode()


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "AAAA",
        base64.b64encode(b"no zlib").decode(),
        base64.b64encode(zlib.compress(b"%%%")).decode(),
        base64.b64encode(zlib.compress(base64.b64encode(b"A=b"))[:-4]).decode(),
        base64.b64encode(zlib.compress(base64.b64encode(b"A=b")) + b"more").decode(),
        base64.b64encode(zlib.compress(b"A" * 10_000_000)).decode(),
        wrap(b"no equals sign"),
        wrap(b"A=nul\0"),
        "ü",
    ],
)
def test_what_is_not_a_wrapped_environment_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        decode_environment(text)


def test_variables_that_steer_the_target_are_never_restored() -> None:
    hostile = ["HOME", "LOGNAME", "USER", "X509_USER_PROXY", "_", "LD_PRELOAD", "BASH_ENV", "IFS", "PYTHONPATH"]
    hostile += ["MALLOC_CHECK_", "GLEXEC_CLIENT_CERT", "BASH_FUNC_ls%%", "A B", "1A", "", "A-B"]
    assert decode_environment(wrap(*(f"{name}=x".encode() for name in hostile), b"GOOD=1")) == {"GOOD": "1"}


def test_names_are_compared_whole() -> None:
    found = decode_environment(encode_environment({"HOMER": "1", "A.B": "2", "AxB": "3"}, exclude=["A.B"]))
    assert found == {"HOMER": "1", "AxB": "3"}


def test_a_vector_that_perl_reads() -> None:
    """glexec_unwrapenv.pl: split on spaces, decode each, split at the first '='."""
    text = encode_environment({"A": "b c=d"})
    assert zlib.decompress(base64.b64decode(text)) == base64.b64encode(b"A=b c=d")


@given(
    st.dictionaries(
        st.from_regex(r"\AJ[A-Z0-9_]{0,9}\Z"), st.text().filter(lambda t: "\0" not in t and t.isprintable())
    )
)
def test_round_trip(environ: dict[str, str]) -> None:
    assert decode_environment(encode_environment(environ)) == environ


@pytest.mark.parametrize(("wait_code", "shell"), [(0, 0), (203, 203), (-9, 137), (-15, 143), (-11, 139)])
def test_shell_codes(wait_code: int, shell: int) -> None:
    assert contract.shell_code(wait_code) == shell


def test_a_payload_cannot_speak_for_the_launcher() -> None:
    codes = {code: contract.payload_code(code) for code in range(256)}
    assert {code for code, given in codes.items() if given != code} == {201, 202, 203}
    assert all(codes[code] == 204 for code in (201, 202, 203, 204))


def test_signals_in_codes() -> None:
    assert contract.signal_of(137) == signal.SIGKILL
    assert contract.signal_of(0) is None
    assert contract.signal_of(255) is None


@pytest.mark.parametrize(("code", "transient"), [(201, False), (202, True), (203, True), (126, False), (1, False)])
def test_who_must_act(code: int, transient: bool) -> None:
    error = contract.switch_error(code, "because")
    assert (error.exit_code, error.transient) == (code, transient)
    assert "(because)" in str(error)


def test_order_of_places(tmp_path: Path) -> None:
    for name in ("osg/program", "glexec/sbin/glexec", "glite/sbin/glexec"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch(mode=0o755)
    places = {
        "OSG_GLEXEC_LOCATION": str(tmp_path / "osg/program"),
        "GLEXEC_LOCATION": str(tmp_path / "glexec"),
        "GLITE_LOCATION": str(tmp_path / "glite"),
    }
    found = []
    for variable in list(places):
        found.append(contract.find_glexec(places))
        del places[variable]
    assert found == [str(tmp_path / n) for n in ("osg/program", "glexec/sbin/glexec", "glite/sbin/glexec")]


def test_what_is_no_program_is_no_launcher(tmp_path: Path) -> None:
    (tmp_path / "plain").touch(mode=0o644)
    for place in ("relative/glexec", str(tmp_path), str(tmp_path / "plain"), str(tmp_path / "missing")):
        assert contract.find_glexec({"OSG_GLEXEC_LOCATION": place}) in (None, "/usr/sbin/glexec")
