"""The figures that the probes add to a study's report."""
