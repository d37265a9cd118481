"""Training-run corpora: directories of checkpoints, made from seeds, as a training loop would leave them."""
