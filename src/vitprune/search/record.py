"""Everything a search tried, on disk if it is to survive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vitprune.errors import StoreError
from vitprune.search.errors import Spent
from vitprune.search.probe import Probe


class Record:
    """Probes in the order in which they were made; a JSON-lines file that grows by one line with each.

    A search that goes on replays its own steps: those that it finds here cost nothing again. A line that a kill cut
    short is dropped.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Raises StoreError for a file that is no record of probes."""
        self.path = path
        self.probes: list[Probe] = []
        self._by_sizes: dict[tuple[tuple[str, int], ...], Probe] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path is not None and path.exists() else []
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                self._keep(Probe.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"{path} line {number} is no probe ({error}); replace the search with --force"
                ) from error
        if path is not None and lines and not lines[-1].endswith("\n"):
            whole = "".join(json.dumps(p.to_json()) + "\n" for p in self.probes)
            beside = path.with_suffix(".tmp")
            beside.write_text(whole, encoding="utf-8")
            beside.replace(path)

    def find(self, sizes: Mapping[str, int]) -> Probe | None:
        """The probe of the plan with these sizes of what loses units."""
        return self._by_sizes.get(_key(sizes))

    def add(self, probe: Probe) -> None:
        """Keeps it; it is on disk when this returns. Raises StoreError when the disk is full."""
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(probe.to_json()) + "\n")
            except OSError as error:
                raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._keep(probe)

    def of(self, purpose: str) -> list[Probe]:
        """The probes that were made for this purpose."""
        return [probe for probe in self.probes if probe.purpose == purpose]

    def check(self, purpose: str, trials: int | None, minutes: float | None) -> None:
        """Pass while so many probes, or minutes of them, were not made for the purpose yet. Raises Spent."""
        made = self.of(purpose)
        if trials is not None and len(made) >= trials:
            raise Spent(f"{trials} probes were made")
        if minutes is not None and sum(probe.seconds for probe in made) >= 60 * minutes:
            raise Spent(f"probes took {minutes:g} minutes")

    def _keep(self, probe: Probe) -> None:
        self.probes.append(probe)
        self._by_sizes[_key(probe.sizes)] = probe


def _key(sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(sizes.items()))
