"""Write one split of a dataset: image files, a COCO JSON and an overview picture."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..checks.summary import summarize
from .overview import contact_sheet


@dataclass(frozen=True)
class Sample:
    """One image of a split.

    Attributes:
        image: the picture, which is saved as PNG; or a file, whose bytes are copied.
        objects: COCO's keys of each object except "id" and "image_id". "iscrowd" defaults to 0 and
            "area" to that of "bbox".
        fields: further keys of the image's entry. "file_name" defaults to its number.
    """

    image: Image.Image | Path
    objects: Sequence[dict[str, Any]]
    fields: dict[str, Any] = field(default_factory=dict)


def write_split(
    folder: Path,
    name: str,
    split: str,
    classes: Sequence[str],
    samples: Iterable[Sample],
    *,
    length: int | None = None,
    **tables: Any,
) -> dict[str, Any]:
    """Write `folder`/SPLIT/, `folder`/annotations/NAME_SPLIT.json and overview_SPLIT.png.

    Args:
        classes: names of the categories 1, 2, ...
        length: number of samples, for the progress bar, where they have none.
        tables: "info" and "licenses" of the JSON.

    Returns:
        the counts of the split, for its record.
    """
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(tqdm(samples, f"{name} {split}", length, unit="image")):
        entry: dict[str, Any] = {"id": number + 1, "file_name": f"{number:06d}.png"}
        entry |= sample.fields
        path = folder / split / entry["file_name"]
        if isinstance(sample.image, Path):
            path.write_bytes(sample.image.read_bytes())
        else:
            sample.image.save(path, quality=95)
            entry |= {"width": sample.image.width, "height": sample.image.height}
        images.append(entry)
        for each in sample.objects:
            ids = {"id": len(annotations) + 1, "image_id": number + 1, "iscrowd": 0}
            annotations.append({**ids, "area": each["bbox"][2] * each["bbox"][3], **each})
    categories = [{"id": index + 1, "name": text} for index, text in enumerate(classes)]
    coco = {**tables, "categories": categories, "images": images, "annotations": annotations}
    (folder / f"annotations/{name}_{split}.json").write_text(json.dumps(coco))
    contact_sheet(folder / split, coco).save(folder / f"overview_{split}.png")
    return asdict(summarize(f"{name}_{split}", coco))
