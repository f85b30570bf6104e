"""Detectron2's builtin COCO names on a generated folder."""

import json

from tests.helpers.coco_folder import make_coco_folder
from tests.helpers.fresh_process import python

CHECK = """
import json
from bn_detect.data import check_dataset
from detectron2.data import DatasetCatalog
found = {"twice": check_dataset("coco_2014_minival").annotations}
for name in ("coco_2017_train", "coco_2017_val", "keypoints_coco_2017_val", "coco_2017_test-dev"):
    summary = check_dataset(name)
    dicts = DatasetCatalog.get(name)
    first = (dicts[0].get("annotations") or [{}])[0]
    found[name] = [summary.images, summary.annotations, summary.categories, list(summary.warnings),
                   len(dicts), sorted(first)]
try:
    check_dataset("coco_2014_val")
except ValueError as error:
    found["missing"] = str(error)
print(json.dumps(found))
"""


def test_builtin_names(tmp_path, monkeypatch):
    folder = make_coco_folder(tmp_path, num_images=3)
    train = folder / "annotations/instances_train2017.json"
    coco = json.loads(train.read_text())
    coco["annotations"][1]["bbox"][2] = 0
    train.write_text(json.dumps(coco))
    twice = [coco["annotations"][0]] * 2
    minival = folder / "annotations/instances_minival2014.json"
    minival.write_text(json.dumps({**coco, "annotations": twice}))
    test = {key: coco[key] for key in ("images", "categories")}
    (folder / "annotations/image_info_test-dev2017.json").write_text(json.dumps(test))
    for other in ("test2017", "val2014"):
        (folder / other).symlink_to("train2017")

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    found = json.loads(python("-c", CHECK).stdout.splitlines()[-1])
    fields = ["bbox", "bbox_mode", "category_id", "iscrowd", "segmentation"]
    warning = ["1 boxes have no positive area; training drops them"]
    assert found["coco_2017_train"] == [3, 12, 80, warning, 3, fields]
    assert found["coco_2017_val"] == [3, 12, 80, [], 3, fields]
    images, persons, categories, warnings, loaded, keys = found["keypoints_coco_2017_val"]
    assert (images, categories, warnings, loaded) == (3, 1, [], 3) and persons >= 3
    assert "keypoints" in keys
    assert found["twice"] == 2
    assert found["coco_2017_test-dev"] == [3, 0, 80, [], 3, []]
    assert "coco/annotations/instances_val2014.json is missing" in found["missing"]
    assert f"set DETECTRON2_DATASETS (now {tmp_path}) to the folder" in found["missing"]
