"""Merging: the merged file stands for its parts, and what does not belong together is refused by name."""

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
    spec = importlib.util.spec_from_file_location(f"{name}_of_merge_test", PHYSICS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


merge_zmumu, zmumu_peak = load("merge_zmumu"), load("zmumu_peak")


def write(path: Path, seed: int, n: int = 50, **changes: Any) -> Path:
    content = {
        "pt": np.full((n, 2), 40.0 + seed), "eta": np.zeros((n, 2)), "phi": np.tile([0.0, np.pi], (n, 1)),
        "mass": np.full((n, 2), 0.10566), "weight": np.ones(n), "sigma_pb": 1500.0 + seed, "sigma_error_pb": 30.0,
        "sqrt_s_gev": 13000.0, "mass_min_gev": 50.0, "seed": seed, **changes,
    }  # fmt: skip
    np.savez_compressed(path, **{name: value for name, value in content.items() if value is not None})
    return path


def test_the_merged_file_stands_for_its_parts(tmp_path: Path) -> None:
    parts = [write(tmp_path / "a.npz", 1, 10), write(tmp_path / "b.npz", 2, 30), write(tmp_path / "c.npz", 3, 20)]
    merged = tmp_path / "merged.npz"
    assert merge_zmumu.main(["--output", str(merged), *map(str, parts)]) == 0
    whole, one = zmumu_peak.read(parts), zmumu_peak.read([merged])
    assert np.array_equal(zmumu_peak.dimuon_mass(whole), zmumu_peak.dimuon_mass(one))
    assert one.sigma_pb == pytest.approx(whole.sigma_pb)
    assert one.sigma_error_pb == pytest.approx(whole.sigma_error_pb)


def test_merging_in_steps_is_merging_at_once_and_counts_no_seed_twice(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / f"{n}.npz", n, 10 * n) for n in (1, 2, 3))
    step, whole = tmp_path / "step.npz", tmp_path / "whole.npz"
    assert merge_zmumu.main(["--output", str(step), str(a), str(b)]) == 0
    assert merge_zmumu.main(["--output", str(whole), str(step), str(c)]) == 0
    at_once = merge_zmumu.merge([a, b, c])
    with np.load(whole) as found:
        assert found["seeds"].tolist() == [1, 2, 3]
        assert float(found["sigma_pb"]) == pytest.approx(at_once["sigma_pb"])
    with pytest.raises(ValueError, match="same seed"):
        merge_zmumu.merge([step, b])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sqrt_s_gev": 7000.0}, "b.npz has another sqrt_s_gev than a.npz"),
        ({"weight": None}, "b.npz was not made by evgen_zmumu: it has no 'weight'"),
        ({"pt": np.array([{"a": 1}], dtype=object)}, "b.npz cannot be read"),
    ],
)
def test_what_does_not_belong_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], says: str
) -> None:
    a, b = write(tmp_path / "a.npz", 1), write(tmp_path / "b.npz", 2, **change)
    assert merge_zmumu.main(["--output", str(tmp_path / "m.npz"), str(a), str(b)]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "m.npz").exists()
