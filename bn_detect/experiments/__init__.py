"""The paper's experiments beside leakage, on handwritten digits; see docs/experiments.md."""
