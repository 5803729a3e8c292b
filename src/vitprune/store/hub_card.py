"""The front matter of a model card, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def front_matter(
    name: str,
    *,
    license: str | None = None,
    base_model: str | None = None,
    data: str | None = None,
    top1: Mapping[str, float] | None = None,
    classifier: bool = True,
) -> list[str]:
    """Lines between two `---`: library, task, licence, base model, data and measured accuracy.

    data: name of the data set; top1: split -> share of right answers. What is None is left out.
    """
    fields: dict[str, Any] = {"library_name": "vitprune"}
    fields["pipeline_tag"] = "image-classification" if classifier else "image-feature-extraction"
    if license:
        fields["license"] = license
    if base_model:
        fields |= {"base_model": base_model, "base_model_relation": "finetune"}
    fields["tags"] = ["vision-transformer", "structured-pruning", "safetensors"]
    if data and top1:
        fields["metrics"] = ["accuracy"]
        task = {"type": "image-classification"}
        results = [
            {
                "task": task,
                "dataset": {"name": data, "type": data, "split": split},
                "metrics": [{"type": "accuracy", "value": round(share, 6), "name": "top-1"}],
            }
            for split, share in top1.items()
        ]
        fields["model-index"] = [{"name": name, "results": results}]
    return ["---", *(f"{key}: {_inline(value)}" for key, value in fields.items()), "---"]


def _inline(value: Mapping[str, Any] | Sequence[Any] | str) -> str:
    """JSON, which is YAML on one line."""
    return json.dumps(value, ensure_ascii=False)
