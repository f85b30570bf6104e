"""Metadata of datasets in Detectron2's MetadataCatalog: the keys of this package, and copying.

`remedy`: what to do where the dataset's files are missing, after "it is missing; ".
`tolerated`: a tuple of faults that the check lets pass with a warning, of those below.
`evaluator_type`: Detectron2's own key, here also `CLASSIFICATION`.
"""

from collections.abc import Sequence

from detectron2.data import MetadataCatalog

CLASSIFICATION = "classification"
EVALUATORS = ("coco", "lvis", "pascal_voc", CLASSIFICATION)  # types that can be evaluated
EMPTY_BOXES = "boxes without area"
REPEATED_IDS = "annotation ids used twice"
UNLABELLED = "no annotations"


def share_metadata(whole: str, derived: str, *, without: Sequence[str] = ()) -> None:
    """Give `derived` the metadata of `whole` that it lacks, except the keys `without`.

    Call it again after `whole` was read: reading a COCO file adds its classes.
    """
    target = MetadataCatalog.get(derived)
    for key, value in MetadataCatalog.get(whole).as_dict().items():
        if key not in ("name", *without) and not hasattr(target, key):
            target.set(**{key: value})
