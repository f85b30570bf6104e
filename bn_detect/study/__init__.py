"""Whole experiments: several training runs, tables and pictures."""

from .. import needs_detectron2  # noqa: F401
