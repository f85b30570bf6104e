"""Measurements, one module per subcommand of `bn-detect benchmark`."""

from .. import needs_detectron2  # noqa: F401
