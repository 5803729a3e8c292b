"""What a search cannot do, and the end of what it may spend."""

from __future__ import annotations

from typing import Any

from vitprune.errors import VitpruneError


class SearchError(VitpruneError):
    """A search that makes no sense, or found nothing."""

    exit_code = 11


class Spent(Exception):
    """No further probe may be made; what was found until then stands."""


class Stopped(Exception):
    """A probe was not worth going on with."""

    def __init__(self, quality: Any) -> None:
        """quality: what was known until then, a `Quality` of the early images."""
        super().__init__("not worth going on")
        self.quality = quality
        self.cost = 1.0  # of the plan, where it is known
