"""The Llama 2 recipe (Touvron et al., 2023, arXiv 2307.09288) as composable command-line stages.

``llamactl`` holds the nouns: records, shards, tokenizer, model, optimizer, loop. ``stages`` holds the verbs: one file a
subcommand. A run is its command line; what crosses a stage boundary is JSON lines and safetensors.
"""

__version__ = "0.1.0"
