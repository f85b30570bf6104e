"""What Detectron2 knows about a dataset beside its images."""

from collections.abc import Sequence

from detectron2.data import MetadataCatalog


def share_metadata(whole: str, derived: str, *, without: Sequence[str] = ()) -> None:
    """Give `derived` the metadata of `whole` that it lacks, but for the keys `without`.

    Call it again when `whole` was read: reading a COCO file adds its classes.
    """
    target = MetadataCatalog.get(derived)
    for key, value in MetadataCatalog.get(whole).as_dict().items():
        if key not in ("name", *without) and not hasattr(target, key):
            target.set(**{key: value})
