"""What a search cannot do, and the end of what it may spend."""

from __future__ import annotations

from vitprune.errors import VitpruneError


class SearchError(VitpruneError):
    """A search that makes no sense, or found nothing."""

    exit_code = 11


class Spent(Exception):
    """No further probe may be made; what was found until then stands."""
