"""Config keys, how a config is read, and what is checked before anything starts."""

from .. import needs_detectron2  # noqa: F401
