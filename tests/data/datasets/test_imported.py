"""Imports of COCO-format folders: a plain one, and one in the form of Roboflow's exports."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util

from bn_detect.data import DatasetError, check_dataset, prepare_dataset, register_derived
from tests.data.small_dataset import small_dataset

CLOSED = [[0, 0, 10, 0, 10, 10, 0, 10]]
RLE = {"size": [30, 40], "counts": [300, 300, 600]}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The small dataset as a.json and images/; datasets are imported into root/."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    coco = small_dataset(tmp_path)
    coco["licenses"], coco["images"][0]["license"] = [{"id": 1, "name": "CC BY 4.0"}], 1
    (tmp_path / "README.dataset.txt").write_text("provided by somebody")
    return tmp_path, coco


def import_it(source, *parts, **options) -> dict[str, dict]:
    """Write the JSON, or some parts of it, import them and return the JSON of each split."""
    folder, coco = source
    files = []
    for index, part in enumerate(parts or (coco,)):
        files.append(str(folder / f"{index}.json"))
        Path(files[-1]).write_text(json.dumps(part))
    options = {"kind": "import", "images": str(folder / "images"), **options}
    assert prepare_dataset("mine", {"annotations": files, **options})
    assert not prepare_dataset("mine", {"annotations": files, **options})
    for split in ("train", "val"):
        check_dataset(f"mine_{split}")
    place = folder / "root/mine/annotations"
    return {s: json.loads((place / f"mine_{s}.json").read_text()) for s in ("train", "val")}


def test_one_file_is_divided_and_images_are_copied_as_they_are(source):
    folder, coco = source
    found = import_it(source, licence="CC BY 4.0, somebody")
    assert [len(found[split]["images"]) for split in ("train", "val")] == [2, 1]
    for split, part in found.items():
        for image in part["images"]:
            original = next(i for i in coco["images"] if i["file_name"] == image["source_name"])
            assert image.get("license") == original.get("license")
            copy = (folder / "root/mine" / split / image["file_name"]).read_bytes()
            assert copy == (folder / "images" / image["source_name"]).read_bytes()
            boxes = [a["bbox"] for a in part["annotations"] if a["image_id"] == image["id"]]
            assert boxes == [
                a["bbox"] for a in coco["annotations"] if a["image_id"] == original["id"]
            ]
        assert [c["name"] for c in part["categories"]] == ["cat", "dog"]
    text = (folder / "root/mine/SOURCE.md").read_text()
    for part in (str(folder / "images"), "somebody", "CC BY 4.0", "provided by somebody"):
        assert part in text


def test_a_later_process_finds_it_by_its_name(source):
    import_it(source)
    for split in ("train", "val"):
        DatasetCatalog.remove(f"mine_{split}")
        MetadataCatalog.remove(f"mine_{split}")
    register_derived(["mine_train"])
    assert check_dataset("mine_train").images == 2


def test_everything_is_resized_with_its_image(source):
    _, coco = source
    coco["annotations"][0] |= {"segmentation": CLOSED, "area": 100}
    coco["annotations"][1] |= {"segmentation": RLE, "keypoints": [20, 10, 2, 0, 0, 0]}
    found = import_it(source, coco, coco, max_side=20)
    assert found["train"] == found["val"] | {"info": found["train"]["info"]}
    for image in found["train"]["images"]:
        assert (image["width"], image["height"]) == (20, 15)
    first, second, third = found["train"]["annotations"]
    assert first["bbox"] == [0, 0, 5, 5] and first["area"] == 25
    assert first["segmentation"] == [[0, 0, 5, 0, 5, 5, 0, 5]]
    assert second["keypoints"] == [10, 5, 2, 0, 0, 0] and second["num_keypoints"] == 1
    whole = mask_util.decode(mask_util.frPyObjects(RLE, 30, 40))
    assert (mask_util.decode(second["segmentation"]) == whole[::2, ::2]).mean() > 0.9
    assert third["bbox"] == [2.5, 2.5, 2, 4.5]


def test_a_small_image_is_not_enlarged_and_a_turned_one_becomes_upright(source):
    folder, coco = source
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[:, :40] = 255  # left, which is above when upright
    Image.fromarray(picture).save(folder / "images/turned.jpg", exif=exif)
    coco["images"][1].update(file_name="turned.jpg", width=60, height=80)
    found = import_it(source, coco, coco, max_side=40)["train"]["images"]
    assert [(i["width"], i["height"]) for i in found] == [(40, 30), (30, 40), (40, 30)]
    with Image.open(folder / "root/mine/train" / found[1]["file_name"]) as image:
        assert image.size == (30, 40) and image.getexif().get(0x0112) is None
        assert image.getpixel((15, 5))[0] > 200 and image.getpixel((15, 35))[0] < 50


def test_an_export_of_roboflow(source):
    """Ids from 0, a category that groups the others, copies of an image, images beside the JSON."""
    folder, coco = source
    for part in ("train", "valid"):
        (folder / part).mkdir()
    for split, part in (("train", "train"), ("val", "valid")):
        images = []
        for index, image in enumerate(coco["images"]):
            name = f"{split}{index}_png.rf.{index:032x}.png"
            (folder / part / name).write_bytes((folder / f"images/{index}.png").read_bytes())
            images.append({**image, "id": index, "file_name": name})
        annotations = [
            {**a, "id": a["id"] - 1, "image_id": a["image_id"] - 10, "category_id": 1 + i % 2}
            for i, a in enumerate(coco["annotations"])
        ]
        categories = [{"id": 0, "name": "animals", "supercategory": "none"}]
        categories += [
            {"id": i, "name": n, "supercategory": "animals"} for i, n in ((1, "cat"), (2, "dog"))
        ]
        export = {"images": images, "annotations": annotations, "categories": categories}
        (folder / part / "_annotations.coco.json").write_text(json.dumps(export))
    files = [str(folder / part / "_annotations.coco.json") for part in ("train", "valid")]
    options = {"kind": "import", "images": str(folder), "annotations": files}
    assert prepare_dataset("mine", options)
    summary = check_dataset("mine_val")
    assert (summary.images, summary.annotations, summary.categories) == (3, 3, 2)
    assert summary.warnings == ()  # ids begin with 1


def test_copies_of_an_image_stay_on_one_side(source):
    folder, coco = source
    content = (folder / "images/0.png").read_bytes()
    coco["images"], coco["annotations"] = [], []
    for index in range(20):
        name = f"photo{index // 4}_png.rf.{index:032x}.png"
        (folder / "images" / name).write_bytes(content)
        coco["images"].append({"id": index, "file_name": name, "width": 40, "height": 30})
    found = import_it(source, val_fraction=0.4)
    names = {s: {i["source_name"][:6] for i in p["images"]} for s, p in found.items()}
    assert len(names["train"]) == 3 and len(names["val"]) == 2
    assert not names["train"] & names["val"]


def test_classes_may_be_supercategories(source):
    _, coco = source
    coco["categories"] = [
        {"id": i, "name": f"c{i}", "supercategory": s}
        for i, s in ((3, "pet"), (7, "pet"), (9, "car"))
    ]
    found = import_it(source, classes="supercategory")["train"]
    assert [c["name"] for c in found["categories"]] == ["pet", "car"]
    assert {a["category_id"] for a in found["annotations"]} <= {1}


def spoil(coco, table, index, **values):
    coco[table][index].update(values)


FAULTS = {
    "no image": (lambda c: spoil(c, "images", 1, file_name="x.png"), r"x\.png\) is missing"),
    "box": (lambda c: spoil(c, "annotations", 0, bbox=[0, 0, 90, 9]), "annotation 1 .*outside"),
    "mask": (lambda c: spoil(c, "annotations", 0, segmentation="x"), "annotation 1 .*segmentation"),
    "size": (lambda c: spoil(c, "images", 0, width=41), "is 40x30 px, the annotations say 41x30"),
    "no tables": (lambda c: c.clear(), "'images' is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_and_nothing_is_left(fault, source):
    folder, coco = source
    change, message = FAULTS[fault]
    change(coco)
    with pytest.raises(DatasetError, match=f"--annotations .*0.json.*{message}"):
        import_it(source, coco)
    assert not (folder / "root/mine").exists()


def test_other_mistakes(source, tmp_path):
    _, coco = source
    other = {**coco, "categories": [*coco["categories"], {"id": 9, "name": "cow"}]}
    with pytest.raises(DatasetError, match="1.json: its classes are not those .* differ in cow"):
        import_it(source, coco, other)
    with pytest.raises(DatasetError, match="category 3 has no 'supercategory'"):
        import_it(source, coco, classes="supercategory")
    with pytest.raises(ValueError, match="one file or two"):
        import_it(source, coco, coco, coco)
    with pytest.raises(DatasetError, match="--images .*nowhere: it does not exist"):
        import_it(source, coco, images=str(tmp_path / "nowhere"))
    single = {**coco, "images": coco["images"][:1], "annotations": coco["annotations"][:2]}
    with pytest.raises(DatasetError, match="one image only"):
        import_it(source, single)
