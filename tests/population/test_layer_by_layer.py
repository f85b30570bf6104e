"""PreciseBN layer by layer (Appendix A.3): statistics of what each layer sees at inference."""

import re
from pathlib import Path

import torch
from torch import nn

from bn_detect.layers import convert_batchnorm
from bn_detect.population import update_population_stats
from bn_detect.population.bn_layers import select_bn_layers

from .snapshot import Recorder, assert_statistics


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)]
    return convert_batchnorm(nn.Sequential(*layers, nn.BatchNorm2d(3), nn.ReLU()).double())


def test_each_layer_has_the_statistics_of_what_it_sees_at_inference():
    batches = [torch.randn(4, 3, 5, 5, dtype=torch.float64).exp() for _ in range(3)]
    one_pass, by_layer = network(), network()
    update_population_stats(one_pass, batches, 3, progress=False)
    for name in select_bn_layers(by_layer, None):
        update_population_stats(
            by_layer, batches, 3, modules=[name], roi_source="test", progress=False
        )
    recorder = Recorder(by_layer)
    for batch in batches:
        by_layer.eval()(batch)
    for name, inputs in recorder.inputs.items():
        assert_statistics(by_layer.get_submodule(name), inputs)
    assert len(recorder.inputs) == 2
    different = (one_pass[4].running_mean - by_layer[4].running_mean).abs().max()
    assert different > 1e-3 * one_pass[4].running_var.sqrt().max()


def test_example_of_the_documentation_runs():
    text = (Path(__file__).parents[2] / "docs" / "paper.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(code, "docs/paper.md", "exec"), {})
