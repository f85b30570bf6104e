"""Rendered images: what is random depends on the sample in training, on the file in testing."""

from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from torch import Tensor

from bn_detect.configuration.keys import default_config
from bn_detect.data import ClassificationMapper, register_image_folders
from bn_detect.data.rendering import Rendering
from bn_detect.engine.resumable_loader import ResumableTrainLoader
from tests.data.image_folders import make_image_folders

MEAN, STD = 78.0, 90.0
CLOSE = {"rtol": 1e-4, "atol": 1e-3}


def rendering(**keys) -> Rendering:
    return Rendering(**keys, pixel_mean=[MEAN], pixel_std=[STD])


@pytest.fixture
def image() -> Tensor:
    x = torch.zeros(1, 32, 32, dtype=torch.uint8)
    x[:, 8:20, 10:18] = 255
    return x


def light(image: Tensor, rendered: Tensor) -> tuple[float, float]:
    """Contrast and brightness that map the one to the other; they must do so exactly."""
    x, y = ((t.double().flatten() - MEAN) / STD for t in (image, rendered))
    contrast = ((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum()).item()
    brightness = (y.mean() - contrast * x.mean()).item()
    torch.testing.assert_close(contrast * x + brightness, y, **CLOSE)
    return contrast, brightness


def test_photometric_part_is_a_linear_map_of_the_stated_range(image):
    render = rendering(photometric=2.0).render
    contrasts, brightnesses = zip(*(light(image, render(image, 1, s)) for s in range(300)))  # noqa: B905
    logs = torch.tensor(contrasts).log()
    for values in (logs, torch.tensor(brightnesses)):
        assert values.abs().max() <= 2
        assert values.min() < -1.9 and values.max() > 1.9 and values.mean().abs() < 0.2
    assert torch.corrcoef(torch.stack([logs, torch.tensor(brightnesses)]))[0, 1].abs() < 0.2


def test_noise_has_the_stated_spread_in_units_of_the_pixels(image):
    difference = rendering(noise=0.5).render(image, 1, 2) - image
    assert difference.std().item() == pytest.approx(0.5 * STD, rel=0.1)
    assert abs(difference.mean().item()) < 0.1 * STD


def test_affine_map_moves_and_scales_within_its_range(image):
    grey = image.float()
    area = grey.sum()
    places = torch.arange(32) + 0.5
    shifts = []
    for seed in range(100):
        moved = rendering(affine=1.0).render(image, seed, 0)
        assert moved.min() >= -0.01 and moved.max() <= 255.01
        assert 0.4 < moved.sum() / area < 2.2  # scale exp(+-0.3) each way, and shear
        shifts.append((moved.sum((0, 1)) @ places / moved.sum()).item() - 14)
    assert max(shifts) > 3 and min(shifts) < -3 and max(map(abs, shifts)) < 13
    centred = torch.zeros(1, 32, 32)
    centred[:, 12:20, 12:20] = 255
    torch.testing.assert_close(rendering().render(centred, 1, 2), centred, **CLOSE)


def config(**keys):
    cfg = default_config()
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = "L", "none"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [MEAN], [STD]
    cfg.INPUT.RENDERING.update(keys)
    return cfg


@pytest.fixture(scope="module")
def dicts(tmp_path_factory) -> list[dict]:
    folder = make_image_folders(tmp_path_factory.mktemp("folders"))
    register_image_folders("rendered_train", folder / "train")
    yield DatasetCatalog.get("rendered_train")
    DatasetCatalog.remove("rendered_train")


def test_no_rendering_by_default(dicts):
    assert ClassificationMapper(config(), True)(dicts[0])["image"].dtype == torch.uint8


def test_test_images_are_rendered_alike_wherever_they_lie(dicts, tmp_path):
    mapper = ClassificationMapper(config(AFFINE=1.0, PHOTOMETRIC=1.0, NOISE=0.1), False)
    torch.manual_seed(0)
    first = mapper(dicts[0])["image"]
    state = torch.get_rng_state()
    copy = tmp_path / Path(*Path(dicts[0]["file_name"]).parts[-2:])
    copy.parent.mkdir()
    copy.write_bytes(Path(dicts[0]["file_name"]).read_bytes())
    assert torch.equal(mapper({**dicts[0], "file_name": str(copy)})["image"], first)
    assert torch.equal(torch.get_rng_state(), state)
    copy.rename(copy.with_name("other.png"))
    other = mapper({**dicts[0], "file_name": str(copy.with_name("other.png"))})["image"]
    assert not torch.equal(other, first)


def loader(dicts: list[dict], per: str, start: int = 0, seed: int = 3) -> ResumableTrainLoader:
    mapper = ClassificationMapper(config(PHOTOMETRIC=2.0, PHOTOMETRIC_PER=per), True)
    made = ResumableTrainLoader(
        [d for d in dicts for _ in range(1)],
        mapper,
        lambda seed: iter([0, 1, 2, 0] * 9),
        4,
        aspect_ratio_grouping=False,
        seed=seed,
    )
    made.start_iteration = start
    return made


def batches(dicts: list[dict], per: str, start: int, seed: int = 3) -> list[Tensor]:
    batches = iter(loader(dicts, per, start, seed))
    return [torch.stack([d["image"] for d in next(batches)]) for _ in range(3)]


@pytest.mark.parametrize("per", ["image", "batch"])
def test_training_images_are_rendered_anew_and_a_resumed_run_repeats_them(dicts, per):
    first = batches(dicts, per, 0)
    torch.manual_seed(1)
    torch.testing.assert_close(batches(dicts, per, 2)[0], first[2], rtol=0, atol=0)
    assert not torch.equal(first[0], first[1])  # the same images, in another step
    assert not torch.equal(batches(dicts, per, 0, seed=4)[0], first[0])
    # The first and last image of a batch are the same one.
    assert all(torch.equal(batch[0], batch[3]) == (per == "batch") for batch in first)
    mapper = ClassificationMapper(config(), True)
    plain = [mapper(dicts[i])["image"] for i in (0, 1, 2)]
    for batch in first:
        lights = {
            tuple(round(v, 3) for v in light(x, y)) for x, y in zip(plain, batch[:3], strict=True)
        }
        assert len(lights) == (1 if per == "batch" else 3)
