"""What goes wrong while masks are learned."""

from __future__ import annotations

from vitprune.errors import VitpruneError


class MaskError(VitpruneError):
    """Masks that a model does not permit, settings that make no sense, or a search that has collapsed."""

    exit_code = 9
