"""Population statistics of another domain, without labels."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor, nn

from bn_detect.data import read_image, register_derived
from bn_detect.engine.domain_shift import evaluate_on, with_statistics_of
from bn_detect.engine.target_images import TargetImages
from tests.helpers.ranks import run_ranks

from ..helpers.in_process import Trainer, config, statistics

TARGET = "in_process_train_corrupted_gaussian_noise_3"


class Pixels(nn.Module):
    """BatchNorm of the images themselves: its population is known."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, dtype=torch.float64)

    def forward(self, batch: list[dict]) -> Tensor:
        assert not self.training and not any("instances" in image for image in batch)
        return self.norm(torch.stack([image["image"] for image in batch]).double())


def settings(datasets, output, **keys):
    keys = {"INPUT__MIN_SIZE_TEST": 0, "INPUT__MAX_SIZE_TEST": 10**6, **keys}
    cfg = config(datasets, output, **keys)
    for name in [n for n in DatasetCatalog if n.startswith("in_process_train_corrupted")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_derived([TARGET])
    return cfg


def found(cfg, num_images: int, **kwargs) -> tuple[Tensor, Tensor]:
    model = Pixels().eval()
    with with_statistics_of(cfg, model, TARGET, num_images, **kwargs) as report:
        assert report.layers[0].updated and not model.training
        result = model.norm.running_mean.clone(), model.norm.running_var.clone()
    assert (model.norm.running_mean == 0).all() and (model.norm.running_var == 1).all()
    return result


def expected(images: list[dict]) -> tuple[Tensor, Tensor]:
    pixels = np.concatenate([read_image(d, "BGR").reshape(-1, 3) for d in images]).astype(float)
    return torch.tensor(pixels.mean(0)), torch.tensor(pixels.var(0, ddof=1))


def test_are_those_of_all_target_images(datasets, tmp_path):
    cfg = settings(datasets, tmp_path, SOLVER__IMS_PER_BATCH=4)  # 6 images: one batch
    torch.testing.assert_close(found(cfg, 6), expected(DatasetCatalog.get(TARGET)))


def test_are_those_of_the_chosen_images(datasets, tmp_path):
    cfg = settings(datasets, tmp_path)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(5)).tolist()
    every = DatasetCatalog.get(TARGET)
    for number in (1, 3):
        chosen = [every[index] for index in order[:number]]
        torch.testing.assert_close(found(cfg, number, seed=5), expected(chosen))


def on_rank(rank: int, world_size: int, datasets, output) -> tuple:
    cfg = settings(datasets, output, SOLVER__IMS_PER_BATCH=3)
    images = TargetImages(cfg, TARGET, 3)
    errors = []
    for number in (2, 5):
        try:
            TargetImages(cfg, TARGET, number)
        except ValueError as caught:
            errors.append(str(caught))
    return found(cfg, 3), len(images), len(TargetImages(cfg, TARGET, None)), errors


def test_ranks_share_the_images(datasets, tmp_path):
    ranks = run_ranks(on_rank, 3, datasets, tmp_path)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0)).tolist()
    settings(datasets, tmp_path)
    every = DatasetCatalog.get(TARGET)
    for result, batches, of_all, errors in ranks:
        assert (batches, of_all) == (1, 2)  # of the 6 images each rank has 2, a batch has 1
        torch.testing.assert_close(result, expected([every[index] for index in order[:3]]))
        few, uneven = errors
        assert "2 images for population statistics" in few and "at least 3" in few
        assert "5 images" in uneven and "3 workers" in uneven and "use 3 or 6" in uneven


@pytest.mark.parametrize(
    ("number", "batch", "virtual", "sizes"),
    [
        (6, 2, 1, [2, 2, 2]),
        (5, 2, 1, [3, 2]),
        (3, 4, 1, [3]),
        (4, 4, 2, [4]),
        (6, 2, 2, [2, 2, 2]),
        (None, 4, 1, [4, 2]),
        (None, 4, 2, [4, 2]),
    ],
)
def test_batches(datasets, tmp_path, number, batch, virtual, sizes):
    keys = {"SOLVER__IMS_PER_BATCH": batch, "MODEL__ROI_BN__VIRTUAL_WORKERS": virtual}
    images = TargetImages(settings(datasets, tmp_path, **keys), TARGET, number)
    assert [len(batch) for batch in images] == sizes and len(images) == len(sizes)
    names = [d["file_name"] for batch in images for d in batch]
    assert len(set(names)) == sum(sizes)
    if number is None:  # in the dataset's own order
        assert names == [d["file_name"] for d in DatasetCatalog.get(TARGET)]


@pytest.mark.parametrize("number", [0, 7])
def test_numbers_that_do_not_fit(datasets, tmp_path, number):
    with pytest.raises(ValueError, match=f"{number} images .* at least 1, .* at most its 6"):
        TargetImages(settings(datasets, tmp_path), TARGET, number)


def test_a_detector_needs_no_labels_and_is_as_before(datasets, tmp_path):
    cfg = settings(datasets, tmp_path, MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    before = statistics(model.state_dict())
    with with_statistics_of(cfg, model, TARGET, 6) as report:
        assert [layer.name for layer in report.layers] == list(
            dict.fromkeys(key.rsplit(".", 1)[0] for key in before)
        )
        assert not report.not_reached
        during = statistics(model.state_dict())
        assert all((during[key] != before[key]).any() for key in before)
        results = evaluate_on(cfg, model, TARGET, tmp_path / "inference")
        assert "AP" in results["bbox"]
    after = statistics(model.state_dict())
    assert all((after[key] == before[key]).all() for key in before)
