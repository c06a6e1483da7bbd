"""The payload scripts: bad files are refused, the kinematics are right, the fit finds what was put in."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

PHYSICS = Path(__file__).parents[2] / "include" / "physics"


def load(name: str) -> ModuleType:
    """A payload script as a module; it is no package."""
    spec = importlib.util.spec_from_file_location(name, PHYSICS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


evgen, zmumu = load("evgen_zmumu"), load("zmumu_peak")


def write(path: Path, seed: int = 1, **changes: Any) -> Path:
    """A file like evgen's: back-to-back muons at mass 91.2 GeV."""
    n = 50
    pair = np.tile([45.6, 45.6], (n, 1))
    content = {
        "pt": pair, "eta": np.zeros((n, 2)), "phi": np.tile([0.0, np.pi], (n, 1)), "mass": np.full((n, 2), 0.10566),
        "weight": np.ones(n), "sigma_pb": 1500.0, "sigma_error_pb": 30.0, "sqrt_s_gev": 13000.0,
        "mass_min_gev": 50.0, "seed": seed, **changes,
    }  # fmt: skip
    np.savez_compressed(path, **{name: value for name, value in content.items() if value is not None})
    return path


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    for name, data in (("empty.npz", b""), ("text.npz", b"hello\n"), ("cut.npz", b"PK\x03\x04cut")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} cannot be read as a NumPy archive"):
            zmumu.read([tmp_path / name])


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"a.npy cannot be read as a NumPy archive: it holds a single array"):
        zmumu.read([tmp_path / "a.npy"])


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", pt=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        zmumu.read([tmp_path / "a.npz"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sigma_pb": None}, "it has no 'sigma_pb'"),
        ({"pt": np.ones((50, 3))}, "holds no muon pairs"),
        ({"weight": np.ones(0)}, "holds no muon pairs"),
    ],
)
def test_other_archives_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        zmumu.read([write(tmp_path / "a.npz", **change)])


def test_the_same_events_do_not_count_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the same seed"):
        zmumu.read([write(tmp_path / "a.npz"), write(tmp_path / "b.npz")])


def test_different_beams_are_not_mixed(tmp_path: Path) -> None:
    other = write(tmp_path / "b.npz", 2, sqrt_s_gev=8000.0)
    with pytest.raises(ValueError, match="different centre-of-mass energies"):
        zmumu.read([write(tmp_path / "a.npz"), other])


def test_files_are_combined_and_the_mass_is_that_of_the_pair(tmp_path: Path) -> None:
    sample = zmumu.read([write(tmp_path / "a.npz"), write(tmp_path / "b.npz", 2, sigma_pb=1600.0)])
    assert (len(sample.weight), sample.files, sample.sigma_pb) == (100, 2, 1550.0)
    assert sample.sigma_error_pb == pytest.approx(30 / np.sqrt(2))
    assert zmumu.dimuon_mass(sample) == pytest.approx(np.hypot(91.2, 2 * 0.10566), rel=1e-9)
    assert zmumu.select(sample).all()


def test_the_fit_finds_what_was_put_in() -> None:
    truth = (91.19, 2.5, 50_000.0, 1_500.0, 0.05)
    edges = np.arange(60.0, 120.5, 1.0)
    centres = (edges[:-1] + edges[1:]) / 2
    sums = np.random.default_rng(7).poisson(zmumu.expected(centres, *truth)).astype(float)
    result = zmumu.fit(edges, sums, np.sqrt(np.maximum(sums, 1)))
    for found, error, true in zip(result.parameters[:2], result.errors[:2], truth[:2], strict=True):
        assert abs(found - true) < 4 * error
    assert result.errors[0] < 0.03
    assert result.probability > 1e-3


def test_too_few_events_are_no_fit(tmp_path: Path) -> None:
    sample = zmumu.read([write(tmp_path / "a.npz")])
    with pytest.raises(ValueError, match="too few events for a fit"):
        zmumu.fit(*zmumu.histogram(zmumu.dimuon_mass(sample), sample.weight))


@pytest.mark.parametrize("words", [["--events", "0", "--seed", "1"], ["--events", "5", "--seed", "0"]])
def test_the_generator_refuses_no_events_and_a_seed_from_the_clock(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        evgen.main([*words, "--output", str(tmp_path / "x.npz")])
    assert caught.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_generated_events_are_read_back_and_repeat_with_their_seed(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        evgen.produce(20, 3, tmp_path / name)
    first, again = (np.load(tmp_path / name) for name in ("a.npz", "b.npz"))
    with first, again:
        assert (first["pt"] == again["pt"]).all()
    sample = zmumu.read([tmp_path / "a.npz"])
    assert (zmumu.dimuon_mass(sample) > 10).all()
    assert 1000 < sample.sigma_pb < 2500
