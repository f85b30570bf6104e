"""Collectives, and RoI shuffling by moving features. Needs torch alone."""

from .roi_shuffle import ShufflePlan, shuffle_rois, unshuffle_rois

__all__ = ["ShufflePlan", "shuffle_rois", "unshuffle_rois"]
