"""Measurements, one module per subcommand of tools/benchmark.py."""

from .. import needs_detectron2  # noqa: F401
