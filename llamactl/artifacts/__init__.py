"""What crosses a stage boundary: records, shards, model directories, training state, manifests."""
