"""What goes wrong when a model is exported."""

from __future__ import annotations

from vitprune.errors import VitpruneError


class ExportError(VitpruneError):
    """A format that cannot be had, or an exported file that does not answer as the model does; nothing is written."""

    exit_code = 13
