"""Which way a payload becomes its owner's: the ladder, and the queue's policy on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from airpanda.core.errors import IdentitySwitchError
from airpanda.core.identity import IdentityPolicy
from airpanda.glexec.contained import ContainedSwitcher
from airpanda.glexec.ports import IdentitySwitcher, PayloadOutcome, RunningPayload, Usage
from airpanda.glexec.through_glexec import GlexecSwitcher

__all__ = [
    "ContainedSwitcher",
    "GlexecSwitcher",
    "IdentitySwitcher",
    "PayloadOutcome",
    "RunningPayload",
    "SwitchLadder",
    "Usage",
]


class SwitchLadder:
    """A launcher, where one is installed; else containment, where the queue's policy accepts it."""

    @staticmethod
    def choose(
        policy: IdentityPolicy,
        *,
        glexec: Optional[Path],
        bwrap: Optional[Path],
        hide: Sequence[Path] = (),
        show: Sequence[Path] = (),
    ) -> IdentitySwitcher:
        """The way for this queue on this node. What a launcher refuses later is never tried in another way.

        Args:
            policy: the queue's.
            glexec: the installed launcher (``contract.find_glexec``), or None.
            bwrap: bubblewrap, or None.
            hide: what a contained payload must not see.
            show: what it needs of that.

        Raises:
            IdentitySwitchError: the policy demands a switch, and nothing is installed that could do it.
        """
        if policy is IdentityPolicy.NEVER or (policy is IdentityPolicy.OPTIONAL and glexec is None):
            return ContainedSwitcher(bwrap, hide=hide, show=show)
        if glexec is None:
            raise IdentitySwitchError(
                "this queue demands an identity switch, and no launcher is installed on this node; the site must "
                "install one or set OSG_GLEXEC_LOCATION"
            )
        return GlexecSwitcher(glexec)
