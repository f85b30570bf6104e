"""What the probes need of a model: one adapter for each kind of detector."""
