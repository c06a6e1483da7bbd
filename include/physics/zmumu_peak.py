"""Payload: the di-muon mass peak of many ``evgen_zmumu`` files, fitted and drawn.

``python zmumu_peak.py FILE.npz [FILE.npz ...]`` leaves ``zmumu.png`` and ``result.json``

Selection: both muons pT > 20 GeV and |eta| < 2.5. The mass spectrum is filled with the event weights, errors are
sqrt(sum of squared weights), and a binned least-squares fit takes the model's integral over each bin. The model is
a relativistic Breit-Wigner with s-dependent width for the Z, part of it with an exponential tail to low mass for
photons outside the cone of the dressed muons, and a 1/m² fall for the virtual photon.

``result.json``: ``mass_gev mass_error_gev width_gev width_error_gev chi2 ndf fit_probability events
events_generated sigma_pb sigma_error_pb sqrt_s_gev files``.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import chi2 as chi2_distribution

mpl.use("Agg")
import matplotlib.pyplot as plt

Floats = NDArray[np.float64]

PT_MIN_GEV = 20.0
ETA_MAX = 2.5
SHOWN_GEV = (60.0, 120.0)
FIT_GEV = (70.0, 110.0)
BIN_GEV = 1.0
PDG_MASS_GEV, PDG_WIDTH_GEV = 91.188, 2.4955
LOSS_GEV = 3.4  # mean loss of the radiating part, from a fit of 100 000 events
LOSSES = np.arange(0.1, 8.0, 0.2)  # in units of LOSS_GEV
LOSS_WEIGHTS = np.exp(-LOSSES) / np.exp(-LOSSES).sum()
# Gauss-Legendre on [-1, 1]: the peak is only 2.5 bins wide, its value in the middle of a bin is not its mean there.
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(5)


@dataclass(frozen=True)
class Sample:
    """Events of all files together. ``pt eta phi mass`` are (n, 2), ``weight`` (n,); cross-section in picobarn."""

    pt: Floats
    eta: Floats
    phi: Floats
    mass: Floats
    weight: Floats
    sigma_pb: float
    sigma_error_pb: float
    sqrt_s_gev: float
    mass_min_gev: float
    files: int


@dataclass(frozen=True)
class Fit:
    """Result of the fit; ``parameters`` are mass, width, signal events, background events and the
    fraction of the signal that radiated."""

    parameters: Floats
    errors: Floats
    chi2: float
    ndf: int

    @property
    def probability(self) -> float:
        return float(chi2_distribution.sf(self.chi2, self.ndf))


def read(paths: Sequence[Path]) -> Sample:
    """Combine the files; cross-sections are averaged by number of events.

    Raises:
        ValueError: a file is not one of ours, is a second copy of the same events, or differs in energy or mass range.
    """
    parts = [_read_one(path) for path in paths]
    for key, what in (("sqrt_s_gev", "centre-of-mass energies"), ("mass_min_gev", "mass ranges")):
        if len({float(part[key]) for part in parts}) > 1:
            raise ValueError(f"the files have different {what}")
    seeds = [int(part["seed"]) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise ValueError("two files were made with the same seed and hold the same events")
    counts = np.array([len(part["weight"]) for part in parts], dtype=np.float64)
    share = counts / counts.sum()
    joined = {key: np.concatenate([part[key] for part in parts]) for key in ("pt", "eta", "phi", "mass", "weight")}
    return Sample(
        **joined,
        sigma_pb=float(share @ [float(part["sigma_pb"]) for part in parts]),
        sigma_error_pb=float(np.linalg.norm(share * [float(part["sigma_error_pb"]) for part in parts])),
        sqrt_s_gev=float(parts[0]["sqrt_s_gev"]),
        mass_min_gev=float(parts[0]["mass_min_gev"]),
        files=len(parts),
    )


_KEYS = frozenset(
    {"pt", "eta", "phi", "mass", "weight", "sigma_pb", "sigma_error_pb", "sqrt_s_gev", "mass_min_gev", "seed"}
)


def _read_one(path: Path) -> dict[str, Floats]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            part = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} cannot be read as a NumPy archive: {error}") from error
    if missing := sorted(_KEYS - part.keys()):
        raise ValueError(f"{path.name} was not made by evgen_zmumu: it has no {missing[0]!r}")
    if part["pt"].shape != (len(part["weight"]), 2) or not len(part["weight"]):
        raise ValueError(f"{path.name} holds no muon pairs")
    return part


def dimuon_mass(sample: Sample) -> Floats:
    """Invariant mass of each pair in GeV."""
    px, py = sample.pt * np.cos(sample.phi), sample.pt * np.sin(sample.phi)
    pz = sample.pt * np.sinh(sample.eta)
    energy = np.sqrt(sample.mass**2 + px**2 + py**2 + pz**2)
    square = energy.sum(1) ** 2 - px.sum(1) ** 2 - py.sum(1) ** 2 - pz.sum(1) ** 2
    return np.asarray(np.sqrt(np.maximum(square, 0.0)), dtype=np.float64)


def select(sample: Sample) -> NDArray[np.bool_]:
    """Which events have both muons in the acceptance."""
    return np.asarray((sample.pt > PT_MIN_GEV).all(1) & (np.abs(sample.eta) < ETA_MAX).all(1))


def histogram(mass: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Bin edges, sums of weights and their errors over the shown range."""
    edges = _edges(*SHOWN_GEV)
    sums, _ = np.histogram(mass, edges, weights=weight)
    squares, _ = np.histogram(mass, edges, weights=weight**2)
    return edges, sums, np.sqrt(squares)


def breit_wigner(m: Floats, mass: float, width: float) -> Floats:
    """Relativistic, with s-dependent width, times the parton luminosity's fall with 1/m²; not normalised."""
    s = m**2
    return np.asarray(1.0 / ((s - mass**2) ** 2 + (s * width / mass) ** 2), dtype=np.float64)


def peak(m: Floats, mass: float, width: float, radiated: float) -> Floats:
    """The Breit-Wigner, of which the fraction ``radiated`` lost energy, exponentially, to photons off the cone."""
    tail = breit_wigner(m[..., None] + LOSS_GEV * LOSSES, mass, width) @ LOSS_WEIGHTS
    return np.asarray((1 - radiated) * breit_wigner(m, mass, width) + radiated * tail, dtype=np.float64)


def density(m: Floats, mass: float, width: float, signal: float, background: float, radiated: float) -> Floats:
    """Expected events per GeV; ``signal`` and ``background`` are the events of each inside the fitted window."""
    points, weights = _quadrature(_centres(_edges(*FIT_GEV)))
    bump = peak(m, mass, width, radiated) / (peak(points, mass, width, radiated) @ weights).sum()
    fall = m**-2.0 / (points**-2.0 @ weights).sum()
    return np.asarray(signal * bump + background * fall, dtype=np.float64)


def expected(centres: Floats, *parameters: float) -> Floats:
    """Expected events per bin: the density's integral over each bin."""
    points, weights = _quadrature(centres)
    return np.asarray(density(points, *parameters) @ weights, dtype=np.float64)


def fit(edges: Floats, sums: Floats, errors: Floats) -> Fit:
    """Least squares in ``FIT_GEV``.

    Raises:
        ValueError: bins without events in the window, or no convergence: too few events for a fit.
    """
    centres = _centres(edges)
    inside = (centres > FIT_GEV[0]) & (centres < FIT_GEV[1])
    if not (errors[inside] > 0).all():
        raise ValueError("a bin of the fit window is empty: too few events for a fit")
    total = float(sums[inside].sum())
    start = (PDG_MASS_GEV, PDG_WIDTH_GEV, 0.97 * total, 0.03 * total, 0.05)
    bounds = ((85, 0.5, 0, 0, 0), (97, 8, 2 * total, total, 0.5))
    try:
        parameters, covariance = curve_fit(
            expected, centres[inside], sums[inside], start, errors[inside], absolute_sigma=True, bounds=bounds
        )
    except (RuntimeError, OptimizeWarning) as error:
        raise ValueError(f"the fit did not converge: {error}") from error
    pulls = (sums[inside] - expected(centres[inside], *parameters)) / errors[inside]
    return Fit(parameters, np.sqrt(np.diag(covariance)), float(pulls @ pulls), int(inside.sum()) - len(parameters))


def _edges(low: float, high: float) -> Floats:
    return np.arange(low, high + BIN_GEV / 2, BIN_GEV)


def _centres(edges: Floats) -> Floats:
    return np.asarray((edges[:-1] + edges[1:]) / 2, dtype=np.float64)


def _quadrature(centres: Floats) -> tuple[Floats, Floats]:
    """Points (bins, nodes) and weights (nodes,) that integrate over each bin."""
    return centres[:, None] + NODES * BIN_GEV / 2, NODE_WEIGHTS * BIN_GEV / 2


def draw(sample: Sample, selected: int, spectrum: tuple[Floats, Floats, Floats], result: Fit, path: Path) -> None:
    """The picture: spectrum with errors, fitted curve and its background, pulls below, all numbers stated."""
    edges, sums, errors = spectrum
    centres = _centres(edges)
    figure, (top, bottom) = plt.subplots(
        2, 1, sharex=True, figsize=(7.2, 6.4), height_ratios=(3, 1), gridspec_kw={"hspace": 0.06}
    )
    fine = np.linspace(*FIT_GEV, 600)
    mass, width, _, background, radiated = result.parameters
    style = {"fmt": "o", "color": "black", "markersize": 3.5, "linewidth": 1, "capsize": 0}
    shown = errors > 0
    top.errorbar(centres[shown], sums[shown], errors[shown], BIN_GEV / 2, label="Pythia 8 events", zorder=3, **style)
    top.plot(
        fine, density(fine, *result.parameters) * BIN_GEV, color="tab:red", label=r"fit: Breit-Wigner + $\gamma^*$"
    )
    falling = density(fine, mass, width, 0.0, background, radiated) * BIN_GEV
    top.plot(fine, falling, color="tab:blue", linestyle="--", label=r"$\gamma^*$ part")
    top.set_yscale("log")
    top.set_ylim(0.5 * sums[shown].min(), 60 * sums.max())
    top.set_ylabel(f"Events / {BIN_GEV:g} GeV")
    handles, labels = top.get_legend_handles_labels()
    top.legend(handles[-1:] + handles[:-1], labels[-1:] + labels[:-1], loc="upper right", frameon=False, fontsize=9)
    top.text(0.03, 0.96, _legend(sample, selected), transform=top.transAxes, va="top", fontsize=9, linespacing=1.5)
    top.text(0.97, 0.74, _numbers(result), transform=top.transAxes, va="top", ha="right", fontsize=9, linespacing=1.5)

    inside = (centres > FIT_GEV[0]) & (centres < FIT_GEV[1])
    pulls = (sums[inside] - expected(centres[inside], *result.parameters)) / errors[inside]
    bottom.axhspan(-1, 1, color="0.9", zorder=0)
    bottom.axhline(0, color="tab:red", linewidth=1)
    bottom.errorbar(centres[inside], pulls, np.ones_like(pulls), BIN_GEV / 2, **style)
    reach = max(3.5, np.abs(pulls).max() + 1.3)
    bottom.set_ylim(-reach, reach)
    bottom.set_ylabel(r"(Events $-$ fit) / $\sigma$")
    bottom.set_xlabel(r"Di-muon invariant mass $m_{\mu\mu}$ [GeV]")
    bottom.set_xlim(*SHOWN_GEV)
    for axes in (top, bottom):
        axes.tick_params(which="both", direction="in", top=True, right=True)
        axes.minorticks_on()
    figure.align_ylabels()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _legend(sample: Sample, selected: int) -> str:
    total = float(sample.weight.sum())
    luminosity = total / sample.sigma_pb
    return "\n".join(
        (
            rf"Pythia 8,  $pp \to Z/\gamma^* \to \mu^+\mu^-$,  $\sqrt{{s}}$ = {sample.sqrt_s_gev / 1000:g} TeV",
            r"generator level, dressed muons ($\Delta R$ < 0.1)",
            "without multiple interactions and hadronisation",
            rf"$p_T$ > {PT_MIN_GEV:g} GeV, $|\eta|$ < {ETA_MAX:g}",
            rf"{selected} of {len(sample.weight)} events, $m$ > {sample.mass_min_gev:g} GeV",
            rf"$\sigma_{{LO+PS}}$ = {sample.sigma_pb:.0f} ± {sample.sigma_error_pb:.0f} pb,  "
            rf"$L_{{eq}}$ = {luminosity:.2f} pb$^{{-1}}$",
        )
    )


def _numbers(result: Fit) -> str:
    mass, width = result.parameters[:2]
    return "\n".join(
        (
            rf"$m_Z$ = {mass:.3f} ± {result.errors[0]:.3f} GeV",
            rf"$\Gamma_Z$ = {width:.3f} ± {result.errors[1]:.3f} GeV",
            rf"$\chi^2$/ndf = {result.chi2:.1f} / {result.ndf}  ($p$ = {result.probability:.2f})",
        )
    )


def analyse(inputs: Sequence[Path], plot: Path, output: Path) -> None:
    """Read, select, fit, draw and write ``output``; prints what it found."""
    sample = read(inputs)
    chosen = select(sample)
    print(f"zmumu_peak: {len(chosen)} events in {sample.files} files, {chosen.sum()} pass the selection")
    spectrum = histogram(dimuon_mass(sample)[chosen], sample.weight[chosen])
    result = fit(*spectrum)
    draw(sample, int(chosen.sum()), spectrum, result, plot)
    numbers = {
        "mass_gev": result.parameters[0],
        "mass_error_gev": result.errors[0],
        "width_gev": result.parameters[1],
        "width_error_gev": result.errors[1],
        "chi2": result.chi2,
        "ndf": result.ndf,
        "fit_probability": result.probability,
        "events": int(chosen.sum()),
        "events_generated": len(chosen),
        "sigma_pb": sample.sigma_pb,
        "sigma_error_pb": sample.sigma_error_pb,
        "sqrt_s_gev": sample.sqrt_s_gev,
        "files": sample.files,
    }
    output.write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"zmumu_peak: m_Z = {numbers['mass_gev']:.3f} +- {numbers['mass_error_gev']:.3f} GeV, "
          f"width = {numbers['width_gev']:.3f} +- {numbers['width_error_gev']:.3f} GeV, "
          f"chi2/ndf = {result.chi2:.1f}/{result.ndf}")  # fmt: skip
    print(f"zmumu_peak: wrote {plot.name} and {output.name}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fit and draw the Z peak of evgen_zmumu files.")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--plot", type=Path, default=Path("zmumu.png"), help="picture to write (default: %(default)s)")
    parser.add_argument("--result", type=Path, default=Path("result.json"), help="numbers (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        analyse(options.inputs, options.plot, options.result)
    except ValueError as error:
        print(f"zmumu_peak: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
