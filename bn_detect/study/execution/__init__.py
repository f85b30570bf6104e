"""The execution of runs: one pool of processes, and the two steps, training and measuring."""
