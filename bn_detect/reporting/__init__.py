"""Numbers over seeds, columns and drawing helpers: what probes and studies share to show results.

Importing this package loads neither scipy nor matplotlib.
"""
