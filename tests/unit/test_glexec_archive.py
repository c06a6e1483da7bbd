"""Files through the switch: archives from a hostile payload first."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from airpanda.core.errors import RequestError
from airpanda.glexec.archive import check_names, pack, unpack


def archive(*members: tuple[str, bytes, bytes, str]) -> io.BytesIO:
    """A tar of (name, type, content, link target)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind, content, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(content)
            tar.addfile(member, io.BytesIO(content))
    return io.BytesIO(stream.getvalue())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "-rf", "a b", "a\n", "ä", "x" * 256])
def test_names_with_a_second_meaning_are_refused(name: str) -> None:
    with pytest.raises(RequestError):
        check_names(["good", name])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_only_regular_files_come_out(kind: bytes, tmp_path: Path) -> None:
    stream = archive(("out", kind, b"", "/etc/passwd"), ("other", tarfile.REGTYPE, b"x", ""))
    assert unpack(stream, ["out"], tmp_path, max_bytes=100) == {}
    assert list(tmp_path.iterdir()) == []


def test_other_names_do_not_come_out(tmp_path: Path) -> None:
    names = ["../out", "./out", "/out", "out/../out", "OUT"]
    stream = archive(*((name, tarfile.REGTYPE, b"x", "") for name in names))
    assert unpack(stream, ["out"], tmp_path, max_bytes=100) == {}


def test_the_limit_is_for_all_together(tmp_path: Path) -> None:
    members = [(name, tarfile.REGTYPE, b"x" * 60, "") for name in ("a", "b")]
    with pytest.raises(RequestError, match="100 bytes"):
        unpack(archive(*members), ["a", "b"], tmp_path, max_bytes=100)


def test_a_name_that_comes_twice_counts_once(tmp_path: Path) -> None:
    stream = archive(("a", tarfile.REGTYPE, b"first", ""), ("a", tarfile.REGTYPE, b"second", ""))
    assert unpack(stream, ["a"], tmp_path, max_bytes=100)["a"].read_bytes() == b"first"


@pytest.mark.parametrize("cut", [0, 100, 512, 600, 1100])
def test_an_archive_that_breaks_off_gives_whole_files_only(cut: int, tmp_path: Path) -> None:
    stream = archive(("a", tarfile.REGTYPE, b"x" * 500, ""), ("b", tarfile.REGTYPE, b"y" * 500, ""))
    found = unpack(io.BytesIO(stream.getvalue()[:cut]), ["a", "b"], tmp_path, max_bytes=10_000)
    assert all(path.stat().st_size == 500 for path in found.values())
    assert {path.name for path in tmp_path.iterdir()} == set(found)


def test_garbage_is_an_empty_archive(tmp_path: Path) -> None:
    assert unpack(io.BytesIO(os.urandom(4096)), ["a"], tmp_path, max_bytes=100) == {}


def header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("name", ["a", "other"])
@pytest.mark.parametrize("size", [-1, -511, -512, -(1 << 40)])
def test_negative_sizes_do_not_widen_the_limit(name: str, size: int, tmp_path: Path) -> None:
    """A tarfile module that takes them counts backwards; one that does not ends the archive there."""
    data = header(name, size) * 200 + header("b", 100 * 1024) + bytes(100 * 1024) + bytes(1024)
    with contextlib.suppress(RequestError):
        assert unpack(io.BytesIO(data), ["a", "b"], tmp_path, max_bytes=1000) == {}
    assert list(tmp_path.iterdir()) == []


class Endless:
    """What a payload can make of tar's output, and no end of it."""

    def __init__(self, beginning: bytes, rest: bytes) -> None:
        self._beginning, self._rest, self.given = beginning, rest, 0

    def read(self, size: int, /) -> bytes:
        data, self._beginning = self._beginning[:size], self._beginning[size:]
        data = data or (self._rest * (size // len(self._rest) + 1))[:size]
        self.given += len(data)
        return data


@pytest.mark.parametrize("rest", [header("other", 0), bytes(512), header("other", 1 << 40), b"x" * 512])
def test_a_stream_without_end_is_left(rest: bytes, tmp_path: Path) -> None:
    stream = Endless(archive(("a", tarfile.REGTYPE, b"x", "")).getvalue()[:1024], rest)
    with pytest.raises(RequestError, match="archive"):
        unpack(stream, ["a"], tmp_path, max_bytes=1000)
    assert stream.given < 40 << 20


def test_pack_and_unpack(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(b"content")
    (tmp_path / "in" / "x").chmod(0o755)
    with pack({"renamed": tmp_path / "in" / "x"}) as stream:
        found = unpack(stream, ["renamed"], tmp_path, max_bytes=100)
    assert found["renamed"].read_bytes() == b"content"
    assert found["renamed"].stat().st_mode & 0o777 == 0o600


def test_pack_refuses_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("/dev/null")):
        with pytest.raises(RequestError):
            pack({"x": path})
