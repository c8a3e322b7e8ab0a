"""The model card, ``README.md`` of a model directory."""

from collections.abc import Iterable, Mapping
from typing import Any


def card(
    name: str,
    what: str,
    settings: Mapping[str, Any],
    sources: Iterable[Mapping[str, Any]],
    task: str = "text-generation",
) -> str:
    """A page on what the model is, what it was trained on and how; ``run.json`` beside it has it all."""
    data = "\n".join(f"| {s['path']} | {s['share']:.1%} | {s['epochs']:.2f} |" for s in sources)
    how = "\n".join(f"| {key} | {value} |" for key, value in sorted(settings.items()))
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags: [llama, llamactl]
---

# {name}

This is {what}, in Hugging Face Llama layout. It follows the recipe of Llama 2 (Touvron et al., 2023); it has none of
Meta's weights. What it was made from, by digest, is in `run.json`.

## Data

| source | share | epochs |
|---|---|---|
{data}

## Settings

| setting | value |
|---|---|
{how}

## Use

A language model repeats what its data holds, errors and prejudice included. Measure it for your purpose before you rely
on it, and see the responsible use guide of the original release.
"""
