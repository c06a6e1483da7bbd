"""What is left of a slot while payloads run side by side. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from airpanda.pilot.wire import Spec


@dataclass(frozen=True)
class Room:
    """Cores, memory and disk that nobody has been promised yet."""

    cores: int
    memory_mib: int
    disk_mib: int

    @property
    def is_any(self) -> bool:
        """Whether the smallest job could still fit."""
        return min(self.cores, self.memory_mib, self.disk_mib) > 0

    def without(self, spec: Spec) -> Room:
        """What is left beside one more job."""
        return Room(self.cores - spec.cores, self.memory_mib - spec.memory_mib, self.disk_mib - spec.disk_mib)

    def at_most(self, disk_mib: int) -> Room:
        """The same with no more disk than this."""
        return Room(self.cores, self.memory_mib, min(self.disk_mib, disk_mib))

    def lacks(self, spec: Spec) -> str:
        """What a job asks for that is not there, in words; empty when it fits."""
        pairs = (
            ("cores", spec.cores, self.cores),
            ("MiB of memory", spec.memory_mib, self.memory_mib),
            ("MiB of disk", spec.disk_mib, self.disk_mib),
        )
        return ", ".join(f"{asked} {what} of {max(0, left)}" for what, asked, left in pairs if asked > left)
