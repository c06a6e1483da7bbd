"""Payload: many ``evgen_zmumu`` files become one of the same form.

``python merge_zmumu.py --output merged.npz FILE.npz [FILE.npz ...]``

Events are joined in the order of the files, cross-sections averaged by number of events. ``seed`` is the first file's;
``seeds`` lists all of them, and a seed that occurs twice is refused, since its events would be counted twice.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

EVENT_KEYS = ("pt", "eta", "phi", "mass", "weight")
SAME_KEYS = ("sqrt_s_gev", "mass_min_gev")


def merge(paths: Sequence[Path]) -> dict[str, Any]:
    """The arrays of the merged file.

    Raises:
        ValueError: a file cannot be read, is none of ours, or does not belong to the others; names it.
    """
    parts = [_read(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        for key in SAME_KEYS:
            if float(part[key]) != float(parts[0][key]):
                raise ValueError(f"{path.name} has another {key} than {paths[0].name}")
    seeds = [seed for part in parts for seed in np.atleast_1d(part.get("seeds", part["seed"])).tolist()]
    if len(set(seeds)) < len(seeds):
        raise ValueError("two files were made with the same seed and hold the same events")
    counts = np.array([len(part["weight"]) for part in parts], dtype=np.float64)
    share = counts / counts.sum()
    return {
        **{key: np.concatenate([part[key] for part in parts]) for key in EVENT_KEYS},
        **{key: parts[0][key] for key in SAME_KEYS},
        "sigma_pb": float(share @ [float(part["sigma_pb"]) for part in parts]),
        "sigma_error_pb": float(np.linalg.norm(share * [float(part["sigma_error_pb"]) for part in parts])),
        "seed": seeds[0],
        "seeds": np.array(seeds),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            part = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} cannot be read as a NumPy archive: {error}") from error
    missing = sorted({*EVENT_KEYS, *SAME_KEYS, "sigma_pb", "sigma_error_pb", "seed"} - part.keys())
    if missing:
        raise ValueError(f"{path.name} was not made by evgen_zmumu: it has no {missing[0]!r}")
    return part


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Merge evgen_zmumu files.")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--output", type=Path, required=True, help="NumPy archive to write")
    options = parser.parse_args(arguments)
    try:
        merged = merge(options.inputs)
    except ValueError as error:
        print(f"merge_zmumu: {error}", file=sys.stderr)
        return 1
    temporary = options.output.with_name(f".{options.output.name}.part")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **merged)
    temporary.replace(options.output)
    print(f"merge_zmumu: {len(options.inputs)} files, {len(merged['weight'])} events, into {options.output.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
