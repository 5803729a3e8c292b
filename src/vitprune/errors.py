"""The errors that users meet. Each message says the rule, the value received, the place and the remedy."""

from __future__ import annotations

from collections.abc import Sequence


def listed(texts: Sequence[str], limit: int = 4, separator: str = ", ") -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return separator.join(texts[:limit]) + more


class VitpruneError(ValueError):
    """Any error that the user can put right; the command line prints it and leaves with `exit_code`."""

    exit_code = 2


class ModelError(VitpruneError):
    """A model that cannot be named, built, loaded or traced."""

    exit_code = 3


class DataError(VitpruneError):
    """A data set that is missing, malformed or does not fit the model."""

    exit_code = 4


class TargetError(VitpruneError):
    """A target that is malformed or cannot be reached."""

    exit_code = 5


class StoreError(VitpruneError):
    """A saved folder that is missing, incomplete, edited, or would be overwritten."""

    exit_code = 6


class OracleError(VitpruneError):
    """The shrunk model does not equal the masked dense one; nothing is written."""

    exit_code = 7
