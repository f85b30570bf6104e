"""The core in a process in which Detectron2 cannot be imported.

`python -m tests.test_without_detectron2` runs the cases and prints what came of each, as JSON.
"""

import contextlib
import copy
import importlib
import io
import json
import sys
import traceback
from collections.abc import Callable
from importlib.abc import MetaPathFinder

import pytest
import torch
from torch import nn

from .helpers.fresh_process import python


def layers() -> None:
    from bn_detect import NormalizationBatch, RoIBatchNorm2d, RoILayout, grouped_batch_norm

    x = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    layout = RoILayout(NormalizationBatch("images"))
    bn = RoIBatchNorm2d(4, dtype=torch.float64, layout=layout)
    layout.record([2, 4])
    expected = [
        nn.functional.batch_norm(part, None, None, training=True) for part in x.split([2, 4])
    ]
    torch.testing.assert_close(bn(x), torch.cat(expected))
    group = torch.tensor([0, 0, 1, 1, 1, 1])
    y = grouped_batch_norm(x, bn.weight, bn.bias, group, 2, bn.eps)[0]
    torch.testing.assert_close(y, torch.cat(expected))


def conversion() -> None:
    from bn_detect import RoIBatchNorm2d, convert_batchnorm, convert_roi_batchnorm, set_iteration

    from .probes.torchvision_models import torchvision_batch, torchvision_detector

    model = torchvision_detector()
    heads = model.roi_heads
    convert_roi_batchnorm(heads.box_head, "shuffled", pooler=heads.box_roi_pool)
    set_iteration(model, 3)
    sum(model(*torchvision_batch(0)).values()).backward()
    assert sum(isinstance(m, RoIBatchNorm2d) for m in model.modules()) == 4
    assert all(p.grad is not None for p in heads.box_head.parameters())
    net = convert_batchnorm(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), images_per_group=2
    )
    first, second = torch.randn(2, 2, 3, 8, 8)
    torch.testing.assert_close(net(torch.cat([first, second]))[:2], net(first))


def shuffling() -> None:
    from bn_detect import shuffle_rois, unshuffle_rois

    x = torch.randn(7, 2)
    moved, plan = shuffle_rois(x, torch.Generator().manual_seed(0))
    assert not torch.equal(moved, x) and torch.equal(unshuffle_rois(moved, plan), x)


def population_statistics() -> None:
    from bn_detect import average_running_statistics, update_population_stats

    from .probes.torchvision_models import torchvision_batch, torchvision_detector

    model = torchvision_detector()
    data = [torchvision_batch(seed) for seed in range(2)]
    report = update_population_stats(
        model, data, 2, modules="roi_heads", forward=lambda b: model(*b), progress=False
    )
    assert len(report.layers) == 4 and all(layer.updated for layer in report.layers)
    bn = nn.BatchNorm2d(3)
    x = torch.randn(5, 3, 4, 4)
    update_population_stats(bn, [x], 1, progress=False)
    torch.testing.assert_close(bn.running_mean, x.mean((0, 2, 3)))
    average_running_statistics(bn)


def freezing() -> None:
    from bn_detect import freeze_batchnorm

    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    assert freeze_batchnorm(model, ["0"]) == ["0"]
    model.train()
    assert [m.training for m in model] == [False, True]
    assert [m.training for m in copy.deepcopy(model).train()] == [False, True]


def probes() -> None:
    from bn_detect.probes import (
        PROBES,
        adversarial_swap,
        companion_swap,
        cross_roi_jacobian,
        decomposition,
        estimation_shift,
        mixed_statistics,
        statistics_probe,
    )

    from .probes.torchvision_models import torchvision_batch, torchvision_detector

    model = torchvision_detector(converted=True)
    data = [torchvision_batch(seed) for seed in range(3)]
    assert companion_swap(model, data, 3, targets_per_image=2).classification.change.mean != 0
    jacobian = cross_roi_jacobian(model, data, 1, rois_per_batch=4)
    assert jacobian.same_image.mean > 0 == jacobian.other_images.mean
    assert statistics_probe(model, data, 3, permutations=2).images == 6
    report = decomposition(model, {"val": data}, 2, population_loader=data, population_batches=2)
    assert len({row.loss for row in report.rows}) == 3
    attack = adversarial_swap(model, data, 3)
    assert attack.worst.mean > attack.average.mean
    mixed = mixed_statistics(model, {"train": data, "val": data}, 2)
    assert len({row.alpha for row in mixed.rows}) > 2 and mixed.gain.mean >= 0
    assert estimation_shift(model, data, 2).layers
    assert len(PROBES) == 7  # those above


def names_that_need_it() -> None:
    import bn_detect

    assert "modeling" not in bn_detect.__all__
    modules = ("modeling", "modeling.box_head", "configuration.keys", "data", "engine")
    attempts: list[Callable[[], object]] = [
        lambda: bn_detect.modeling,
        lambda: bn_detect.add_bn_detect_config,
        *(lambda m=m: importlib.import_module(f"bn_detect.{m}") for m in modules),
    ]
    for attempt in attempts:
        with pytest.raises(ImportError, match="needs Detectron2.*make setup") as error:
            attempt()
        assert error.value.name == "detectron2" and "\n" not in str(error.value)
    with pytest.raises(AttributeError, match="no attribute 'modelling'"):
        bn_detect.modelling  # noqa: B018


def commands() -> None:
    from bn_detect.commands.main import SUBCOMMANDS, main

    for name in SUBCOMMANDS.keys() - {"probe"}:  # which probes torchvision's detectors without it
        for arguments in ([name], [name, "--help"]):
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors):
                assert main(arguments) == 2, name
            (line,) = errors.getvalue().splitlines()
            assert line.startswith(f"error: bn-detect {name}: ") and "make setup" in line
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["--help"]) == 0
    assert all(name in shown.getvalue() for name in SUBCOMMANDS)


CASES = (
    layers,
    conversion,
    shuffling,
    population_statistics,
    freezing,
    probes,
    names_that_need_it,
    commands,
)


class NoDetectron2(MetaPathFinder):
    def find_spec(self, fullname: str, path=None, target=None) -> None:
        if fullname.split(".")[0] == "detectron2":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main() -> None:
    sys.meta_path.insert(0, NoDetectron2())
    results = {}
    for case in CASES:
        try:
            case()
            results[case.__name__] = ""
        except Exception:
            results[case.__name__] = traceback.format_exc()
    results["detectron2 loaded"] = "detectron2" in sys.modules
    print(json.dumps(results))


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    return json.loads(python("-m", "tests.test_without_detectron2").stdout.splitlines()[-1])


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_core(case, results):
    assert not results["detectron2 loaded"]
    assert not results[case], results[case]


if __name__ == "__main__":
    main()
