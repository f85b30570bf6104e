"""Heads that were trained under different batches."""

import pytest
from torch import nn

from .toy import detector, train

# The fewer the images, the sooner a head finds out that its companions tell the class.
SETTINGS = {
    "1 image": ({"batch": "images"}, 200),
    "2 images": ({"batch": "worker", "virtual_workers": 4}, 350),
    "shuffled": ({"batch": "shuffled", "virtual_workers": 8}, 150),
    "global": ({"batch": "global"}, 150),
}


@pytest.fixture(scope="session")
def correlated() -> dict[str, nn.Module]:
    """Heads trained on images whose objects are of one class; half of them show it."""
    return {
        name: train(detector(**setting), iterations, correlation=1.0, own_evidence=0.5)
        for name, (setting, iterations) in SETTINGS.items()
    }
