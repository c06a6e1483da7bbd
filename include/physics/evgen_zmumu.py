"""Payload: Pythia 8 events of pp → Z/γ* → µ⁺µ⁻ and their muons, at generator level and without selection.

``python evgen_zmumu.py --events 500 --seed 7 --output events.npz``

The file is a NumPy archive (no pickles) with, for n events:

==================  =========  ==============================================================
``pt eta phi mass`` (n, 2)     dressed muons, µ⁻ first: GeV, pseudorapidity, radian, GeV
``weight``          (n,)       event weights
``sigma_pb``        scalar     generated cross-section and its statistical error, picobarn
``sigma_error_pb``  scalar
``sqrt_s_gev``      scalar     centre-of-mass energy
``mass_min_gev``    scalar     lower limit of the generated di-lepton mass
``seed``            scalar     of Pythia's random numbers: two files with one seed hold the same events
==================  =========  ==============================================================

A muon is *dressed*: photons within ΔR < 0.1 that it radiated are added back, as measurements at the LHC do.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pythia8mc as pythia8

SQRT_S_GEV = 13000.0
MASS_MIN_GEV = 50.0
DRESSING_CONE = 0.1
MAX_SEED = 900_000_000  # Pythia's own limit
MB_IN_PB = 1e9
MUON, PHOTON = 13, 22

CARDS = (
    "Beams:idA = 2212",
    "Beams:idB = 2212",
    f"Beams:eCM = {SQRT_S_GEV}",
    "WeakSingleBoson:ffbar2gmZ = on",
    "23:onMode = off",
    "23:onIfAny = 13",
    f"PhaseSpace:mHatMin = {MASS_MIN_GEV}",
    # Initial-state showers (which give the Z its pT) and photon radiation stay on. Multiple interactions and
    # hadronisation make the other particles of the event: they do not touch these muons and cost 80 % of the time.
    "PartonLevel:MPI = off",
    "HadronLevel:all = off",
    "Random:setSeed = on",
    "Next:numberCount = 0",
    "Next:numberShowEvent = 0",
    "Next:numberShowProcess = 0",
    "Next:numberShowInfo = 0",
    "Init:showChangedSettings = on",
    "Init:showChangedParticleData = off",
    "Init:showProcesses = on",
)


def make_generator(seed: int) -> Any:
    """Pythia, initialised for the process.

    Raises:
        RuntimeError: Pythia refused a setting or could not initialise; its own messages stand above in the log.
    """
    pythia = pythia8.Pythia("", False)
    for card in (*CARDS, f"Random:seed = {seed}"):
        if not pythia.readString(card):
            raise RuntimeError(f"Pythia refused the setting {card!r}")
    if not pythia.init():
        raise RuntimeError("Pythia could not initialise")
    return pythia


def generate(pythia: Any, events: int) -> Iterator[tuple[float, list[tuple[float, float, float, float]]]]:
    """Weight and the two dressed muons (pt, eta, phi, mass; µ⁻ first) of each event.

    Raises:
        RuntimeError: ten failures for one event, or an event without its two muons.
    """
    for number in range(events):
        if not any(pythia.next() for _ in range(10)):
            raise RuntimeError(f"Pythia failed ten times at event {number}")
        yield pythia.infoPython().weight(), _dressed_muons(pythia.event)


def _dressed_muons(event: Any) -> list[tuple[float, float, float, float]]:
    finals = [p for p in map(event.__getitem__, range(event.size())) if p.idAbs() in (MUON, PHOTON) and p.isFinal()]
    photons = [p for p in finals if p.id() == PHOTON]
    return [_dressed([p for p in finals if p.id() == pdg_id], photons) for pdg_id in (MUON, -MUON)]


def _dressed(muons: list[Any], photons: list[Any]) -> tuple[float, float, float, float]:
    if not muons:
        raise RuntimeError("an event has no final muon pair")
    muon = max(muons, key=lambda p: p.pT())
    total = muon.p()
    for photon in photons:
        if _is_near(muon, photon):
            total += photon.p()
    return total.pT(), total.eta(), total.phi(), total.mCalc()


def _is_near(one: Any, other: Any) -> bool:
    d_phi = math.remainder(one.phi() - other.phi(), 2 * math.pi)
    return math.hypot(one.eta() - other.eta(), d_phi) < DRESSING_CONE


def produce(events: int, seed: int, output: Path) -> None:
    """Generate and write ``output``; the file appears only when it is complete."""
    start = time.monotonic()
    print(f"evgen_zmumu: {events} events, seed {seed}, on {platform.node()}, Python {platform.python_version()}")
    pythia = make_generator(seed)
    ready = time.monotonic()
    weights, muons = zip(*generate(pythia, events), strict=True)
    info = pythia.infoPython()
    sigma, sigma_error = info.sigmaGen() * MB_IN_PB, info.sigmaErr() * MB_IN_PB
    pt, eta, phi, mass = np.moveaxis(np.asarray(muons, dtype=np.float64), 2, 0)
    temporary = output.with_name(f".{output.name}.part")
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            pt=pt, eta=eta, phi=phi, mass=mass, weight=np.asarray(weights, dtype=np.float64),
            sigma_pb=sigma, sigma_error_pb=sigma_error, sqrt_s_gev=SQRT_S_GEV, mass_min_gev=MASS_MIN_GEV, seed=seed,
        )  # fmt: skip
    temporary.replace(output)
    end = time.monotonic()
    print(
        f"evgen_zmumu: sigma(pp -> Z/gamma* -> mu mu, m > {MASS_MIN_GEV:g} GeV) = {sigma:.0f} +- {sigma_error:.0f} pb"
    )
    print(f"evgen_zmumu: mean muon pT {pt.mean():.1f} GeV, sum of weights {sum(weights):g}")
    print(f"evgen_zmumu: initialised in {ready - start:.1f} s, generated in {end - ready:.1f} s")
    print(f"evgen_zmumu: wrote {output.name}, {output.stat().st_size} bytes", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Generate pp -> Z/gamma* -> mu mu at 13 TeV with Pythia 8.")
    parser.add_argument("--events", type=int, required=True, help="number of events, 1 or more")
    parser.add_argument("--seed", type=int, required=True, help=f"random seed, 1 to {MAX_SEED}; one per job")
    parser.add_argument("--output", type=Path, required=True, help="NumPy archive to write")
    options = parser.parse_args(arguments)
    if options.events < 1:
        parser.error("--events must be 1 or more")
    if not 1 <= options.seed <= MAX_SEED:
        parser.error(f"--seed must be 1 to {MAX_SEED}: Pythia would draw 0 from the clock")
    try:
        produce(options.events, options.seed, options.output)
    except RuntimeError as error:
        print(f"evgen_zmumu: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
