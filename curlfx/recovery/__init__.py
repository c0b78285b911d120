"""Training after slimming: cross-entropy and distillation from the dense network."""
