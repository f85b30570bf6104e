"""Collectives and RoI shuffling; knows nothing of Detectron2."""

from .roi_shuffle import ShufflePlan, shuffle_rois, unshuffle_rois

__all__ = ["ShufflePlan", "shuffle_rois", "unshuffle_rois"]
