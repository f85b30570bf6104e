"""The measurements run, and what they print follows from what they measured."""

import json

import pytest
import torch

from bn_detect.benchmarks.measuring import interleaved, ratios, spread
from bn_detect.benchmarks.precise_bn import Errors, _errors
from bn_detect.commands.benchmark import main


def test_command(tmp_path, capsys):
    file = tmp_path / "result.json"
    small = ["--repetitions", "2", "--batches", "1", "--samples", "40"]
    assert main(["precise-bn", "--json", str(file), "--output", str(tmp_path), *small]) == 0
    printed = capsys.readouterr().out
    result = json.loads(file.read_text())
    for arms in result["ms_per_image"].values():
        assert list(arms) == ["forward only", "ours", "fvcore"]
        assert all(len(values) == 2 and min(values) > 0 for values in arms.values())
        assert spread(ratios(arms["ours"], arms["forward only"])) in printed
    assert (tmp_path / "precise_bn_samples.png").read_bytes().startswith(b"\x89PNG")


def test_error_falls_as_the_root_of_the_samples():
    """Independent values: the error of a mean of n, in sigma, is sqrt(1 / n - 1 / N)."""
    g = torch.Generator().manual_seed(0)
    batches = (3 + 2 * torch.randn(10, 64, 1, 1, generator=g) for _ in range(100))
    errors: Errors = _errors("noise", "values", torch.nn.BatchNorm2d(64), batches, 10, 500)
    assert errors.samples == [10, 20, 50, 100, 200, 500] and errors.reference == 1000
    for samples, error in zip(errors.samples, errors.mean, strict=True):
        assert error == pytest.approx((1 / samples - 1 / 1000) ** 0.5, rel=0.1)


def test_repetitions_are_interleaved_and_the_first_does_not_count():
    calls = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abababab"
    assert len(seconds["a"]) == len(seconds["b"]) == 3
