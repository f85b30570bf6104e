"""Corrupted datasets: by name, on the fly and on disk."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from PIL import Image

from bn_detect.data import (
    BNDatasetMapper,
    DatasetError,
    check_dataset,
    corrupt,
    read_image,
    register_corrupted,
    register_derived,
    write_corrupted,
)
from tests.helpers.fresh_process import python


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """Four images of 48x40 px with one box each, in two folders; some file names repeat."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    rng = np.random.default_rng(0)
    dicts = []
    for index in range(4):
        path = tmp_path / f"images/{index % 2}/{index // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
        box = {"bbox": [4, 4, 20, 20], "bbox_mode": 0, "category_id": 0}
        record = {"file_name": str(path), "image_id": index, "height": 40, "width": 48}
        dicts.append({**record, "annotations": [box]})
    name = "corrupted_test_whole"
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=["tree"], json_file="x.json", evaluator_type="coco")
    return name


def test_is_known_by_its_name_with_metadata_and_annotations(whole):
    name = f"{whole}_corrupted_gaussian_noise_3"
    register_derived([whole, name, name, f"{name}@2", f"{whole}@2_corrupted_fog_1"])
    assert register_corrupted(whole, "gaussian_noise", 3) == name
    originals, dicts = DatasetCatalog.get(whole), DatasetCatalog.get(name)
    assert [{**d, "corruption": ("gaussian_noise", 3)} for d in originals] == dicts
    assert MetadataCatalog.get(name).json_file == "x.json"  # the same ground truth
    assert MetadataCatalog.get(name).thing_classes == ["tree"]
    assert [d["image_id"] for d in DatasetCatalog.get(f"{name}@2")] == [0, 2]
    of_part = f"{whole}@2_corrupted_fog_1"
    assert [d["corruption"] for d in DatasetCatalog.get(of_part)] == [("fog", 1)] * 2
    assert not hasattr(MetadataCatalog.get(of_part), "json_file")
    assert check_dataset(of_part).images == 2


@pytest.mark.parametrize("format", ["RGB", "BGR", "L"])
def test_reading(whole, format):
    dicts = DatasetCatalog.get(register_corrupted(whole, "gaussian_noise", 3))
    images = [read_image(d, format) for d in dicts]
    for image, again in zip(images, dicts, strict=True):
        assert (image == read_image(again, format)).all()
        assert image.shape == (40, 48, 1 if format == "L" else 3)
    # Noise of about the spread that severity 3 has where nothing is clipped, and each image's own,
    # also where file names repeat.
    clean = [utils.read_image(d["file_name"], format).astype(float) for d in dicts]
    noise = np.stack([(a - b).ravel() for a, b in zip(images, clean, strict=True)])
    assert (noise.std(axis=1) > 10).all() and (noise.std(axis=1) < 0.18 * 255).all()
    assert abs(np.corrcoef(noise) - np.eye(4)).max() < 0.1


def test_formats_agree(whole):
    first = DatasetCatalog.get(register_corrupted(whole, "frost", 2))[0]
    assert (read_image(first, "RGB") == read_image(first, "BGR")[:, :, ::-1]).all()
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'YUV-BT.601'"):
        read_image(first, "YUV-BT.601")
    clean = DatasetCatalog.get(whole)[0]
    expected = utils.read_image(clean["file_name"], "YUV-BT.601")
    assert (read_image(clean, "YUV-BT.601") == expected).all()


@pytest.mark.parametrize("is_train", [True, False])
def test_mapper_corrupts_before_it_augments(whole, is_train):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (80,), "none"
    cfg.INPUT.MIN_SIZE_TEST = 80
    mapper = BNDatasetMapper(cfg, is_train)
    clean = DatasetCatalog.get(whole)[1]
    dirty = DatasetCatalog.get(register_corrupted(whole, "contrast", 3))[1]
    for d in (clean, dirty, clean):  # the mapper keeps nothing of one image for the next
        found = mapper(d)["image"].permute(1, 2, 0).numpy()
        resized = np.asarray(Image.fromarray(read_image(d, "BGR")).resize((96, 80), 2))
        assert (found == resized).all()
    assert ("instances" in mapper(dirty)) == is_train
    assert "annotations" in dirty


def test_on_disk_is_what_is_made_on_the_fly(whole):
    name = register_corrupted(whole, "snow", 2)
    on_the_fly = [read_image(d, "BGR") for d in DatasetCatalog.get(name)]
    assert write_corrupted(whole, "snow", 2) and not write_corrupted(whole, "snow", 2)
    dicts = DatasetCatalog.get(name)
    assert all("corruption" not in d and name in d["file_name"] for d in dicts)
    assert dicts[2]["file_name"].endswith(f"{name}/0/1.png")
    for d, expected in zip(dicts, on_the_fly, strict=True):
        assert (read_image(d, "BGR") == expected).all()
    assert [d["annotations"] for d in dicts] == [
        d["annotations"] for d in DatasetCatalog.get(whole)
    ]
    DatasetCatalog.get(whole).pop()
    with pytest.raises(DatasetError, match="holds 4 images, but .* has 3: make it anew"):
        DatasetCatalog.get(name)


def test_on_disk_no_two_images_are_one_file(whole, tmp_path):
    first = DatasetCatalog.get(whole)[0]
    twin = Path(first["file_name"]).with_suffix(".jpg")
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(twin)
    DatasetCatalog.get(whole).append({**first, "file_name": str(twin)})
    assert write_corrupted(whole, "contrast", 1)
    files = [d["file_name"] for d in DatasetCatalog.get(register_corrupted(whole, "contrast", 1))]
    assert len(set(files)) == 5 and files[-1].endswith("0/0.jpg.png")


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("corrupted_rain_3", "corruption is 'rain'; it must be one of"),
        ("corrupted_fog_6", "severity of fog is 6; it must be 1 to 5"),
        ("corrupted_fog_1_corrupted_snow_1", "is corrupted already"),
        ("corrupted_fog_1@none", "after @ stands a number of images"),
    ],
)
def test_mistakes_in_names(whole, ending, said):
    with pytest.raises(ValueError, match=said):
        register_derived([f"{whole}_{ending}"])


def test_images_that_are_too_small(whole):
    DatasetCatalog.get(whole)[2]["height"] = 31
    with pytest.raises(DatasetError, match="0.*png is 48x31 px; corruptions need"):
        DatasetCatalog.get(register_corrupted(whole, "fog", 1))


def test_seed_does_not_depend_on_where_the_dataset_lies(tmp_path, whole):
    original = DatasetCatalog.get(whole)[3]
    copy = tmp_path / "elsewhere" / Path(original["file_name"]).parent.name / "1.png"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(Path(original["file_name"]).read_bytes())
    corruption = {"corruption": ("gaussian_noise", 1)}
    moved = {**original, **corruption, "file_name": str(copy)}
    assert (read_image(moved, "RGB") == read_image({**original, **corruption}, "RGB")).all()


def test_tool_refuses_an_unknown_dataset(tmp_path):
    words = ["corrupted", "--dataset", "nothing_here", "--corruption", "fog"]
    done = python("tools/prepare_data.py", *words, code=2)
    assert done.stderr.splitlines()[-1].startswith(
        "error: dataset 'nothing_here' is not registered"
    )


def test_uses_the_public_function(whole):
    d = DatasetCatalog.get(register_corrupted(whole, "pixelate", 4))[0]
    clean = utils.read_image(d["file_name"], "RGB")
    assert (read_image(d, "RGB") == corrupt(clean, "pixelate", 4, seed=0)).all()  # not random
