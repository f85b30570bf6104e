"""The worst companions: against a head whose worst companions are known in closed form."""

import pytest
import torch
import torch.nn.functional as F

from bn_detect import NormalizationBatch
from bn_detect.probes import adversarial_swap

from .. import toy
from ..toy import CHANNELS, GRID, OBJECTS, ROIS, batches, detector, image

PER_IMAGE = NormalizationBatch("images")
OWN, BATCH = 0.3, 1.0


def scene(foreground: float, background: float) -> dict:
    """An image whose objects have one value, and its background another."""
    cells = torch.full((GRID**2, CHANNELS), background)
    cells[:OBJECTS] = foreground
    return image(cells, torch.zeros(OBJECTS, dtype=torch.int64))


def test_it_finds_the_worst_companions_that_there_are():
    """The loss of a foreground RoI falls with the mean of its group, that of background rises."""
    values = [[(0.5, 0.1), (0.2, -0.3)], [(0.9, 0.4), (-0.4, 0.0)]]
    data = [[scene(*each) for each in batch] for batch in values]
    model = toy.batch_reader(OWN, BATCH)
    report = adversarial_swap(model, data, 2, partition=PER_IMAGE, targets_per_image=2)
    assert report.rois == 8 and report.images == 4

    def loss(value: float, others: tuple[float, float], background: bool) -> float:
        """Of a RoI beside 11 others, 5 or 6 of them foreground."""
        number = OBJECTS - (not background)
        total = value + number * others[0] + (ROIS - 1 - number) * others[1]
        z = OWN * value + BATCH * total / ROIS
        logits = torch.tensor([[z, -z]], dtype=torch.float64)
        return float(F.cross_entropy(logits, torch.tensor([int(background)])))

    own, worst = [], []
    for here, there in ((0, 1), (1, 0)):
        for each in values[here]:
            for kind in (0, 1):
                extreme = tuple((min, max)[kind](v[k] for v in values[there]) for k in (0, 1))
                own.append(loss(each[kind], each, bool(kind)))
                worst.append(loss(each[kind], extreme, bool(kind)) - own[-1])
    assert report.own.mean == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert report.worst.mean == pytest.approx(sum(worst) / len(worst), rel=1e-5)
    assert report.average.mean < report.worst.mean and "worst" in str(report)


def test_the_search_is_never_below_the_average():
    report = adversarial_swap(
        detector(batch="images"), batches(3, 4, 0, correlation=0.5, own_evidence=0.5), 3
    )
    assert report.worst.low > report.average.high
    assert report.worst_flip_rate.mean >= report.flip_rate.mean


def test_rois_that_do_not_meet_have_no_worse_companions():
    data = batches(2, 4, 0, correlation=1.0, own_evidence=0.5)
    report = adversarial_swap(detector("GN"), data, 2)
    for found in (report.average, report.worst, report.flip_rate, report.worst_flip_rate):
        assert found.mean == 0
    with pytest.raises(ValueError, match="num_batches is 1"):
        adversarial_swap(detector(), data, 1)
