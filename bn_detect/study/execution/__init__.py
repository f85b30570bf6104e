"""How runs are done: one pool of processes, and the two steps of a run, training and measuring."""
