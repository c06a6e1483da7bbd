"""All modules in one file: used where it fits, and never where a source, or Python itself, is another one by now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import airpanda

PLUGINS = str(Path(airpanda.__file__).parent.parent)
SHOW = "print(word.WHAT, inner.WHAT, type(word.__loader__).__name__, word.__file__, inner.__package__)\n"


class Place:
    """A package in a directory, and programs that import it with and without the one file."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "one.modules"
        package = root / "words"
        package.mkdir()
        (package / "__init__.py").write_text("")
        self.word, self.inner = package / "word.py", package / "inner.py"
        for path in (self.word, self.inner):
            path.write_text(f"WHAT = 'old {path.stem}'\n")
        self.run("import words.word, words.inner\nopen(sys.argv[1], 'wb').write(onefile.content())\n")

    def run(self, program: str) -> str:
        start = f"import sys; sys.path[:0] = [{PLUGINS!r}, {str(self.root)!r}]\n"
        start += "from airpanda.glexec.launcher import onefile\n"
        command = [sys.executable, "-B", "-IS", "-c", start + program, str(self.file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def used(self) -> list[str]:
        return self.run(f"onefile.use(sys.argv[1])\nfrom words import inner, word\n{SHOW}").split()


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_it_is_used(place: Place) -> None:
    assert place.used() == ["old", "word", "old", "inner", "OneFile", str(place.word), "words"]


DOCUMENTED = '''"""A word."""


class WHAT:
    """Only this."""


def f():
    """Doc."""
    assert WHAT is None, "seen"
'''
SHOW_DOCUMENTED = """
onefile.use(sys.argv[1])
from words import word
print(type(word.__loader__).__name__, word.__doc__, word.WHAT.__doc__, word.f.__doc__)
try:
    word.f()
except AssertionError as error:
    print(error)
"""


def test_assertions_stay_and_docstrings_go(place: Place) -> None:
    place.word.write_text(DOCUMENTED)
    place.run("import words.word\nopen(sys.argv[1], 'wb').write(onefile.content())\n")
    assert place.run(SHOW_DOCUMENTED) == "OneFile None None None\nseen\n"


def test_a_source_that_has_changed_is_read_and_the_others_are_not(place: Place) -> None:
    place.word.write_text("WHAT = 'new word'\n")
    os.utime(place.word, ns=(1, 1))
    assert place.used() == ["new", "word", "old", "inner", "SourceFileLoader", str(place.word), "words"]


def test_a_source_that_is_gone_is_gone(place: Place) -> None:
    place.word.unlink()
    outcome = "onefile.use(sys.argv[1])\ntry:\n    import words.word\nexcept ImportError:\n    print('gone')\n"
    assert place.run(outcome) == "gone\n"


@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "other bytes", "another Python's"])
def test_a_file_that_does_not_fit_is_not_used(place: Place, damage: str) -> None:
    data = place.file.read_bytes()
    if damage == "missing":
        place.file.unlink()
    else:
        other = data.replace(sys.version.encode(), b"9" * len(sys.version), 1)
        changed = {"empty": b"", "cut off": data[:30], "other bytes": b"\xff" * 999, "another Python's": other}
        place.file.write_bytes(changed[damage])
        assert changed[damage] != data
    assert place.used()[4] == "SourceFileLoader"


def test_the_launcher_itself_works_from_it(place: Place) -> None:
    names = "airpanda.glexec.launcher.run, airpanda.glexec.launcher.credential"
    place.run(f"sys.path.append({str(Path(pytest.__file__).parent.parent)!r})\nimport {names}\n"
              "open(sys.argv[1], 'wb').write(onefile.content())\n")  # fmt: skip
    show = "print(type(airpanda.glexec.launcher.run.__loader__).__name__, type(cryptography.x509.__loader__).__name__)"
    program = f"onefile.use(sys.argv[1])\nsys.path.append({str(Path(pytest.__file__).parent.parent)!r})\n"
    assert place.run(f"{program}import {names}, cryptography.x509\n{show}\n") == "OneFile OneFile\n"
