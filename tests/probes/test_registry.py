"""The rows of the registry: what a study calls, and reads from the reports."""

import dataclasses
import json

import pytest

from bn_detect.probes import PROBES

from . import toy


@pytest.mark.parametrize("name", PROBES)
def test_columns_read_the_reports_as_json_keeps_them(name):
    probe, model = PROBES[name], toy.detector(batch="images")
    data = toy.batches(3, 4, 0, correlation=1.0, own_evidence=0.5)
    loaders = data if probe.splits == ("TEST",) else {"train": data, "val": data}
    given = {"population_loader": data, "population_batches": 2, "evaluate": None}
    arguments = {key: given[key] for key in probe.arguments}
    report = probe.function(model, loaders, 3, partition=None, seed=0, **arguments)
    kept = json.loads(json.dumps(dataclasses.asdict(report)))
    for column in probe.columns:
        assert isinstance(column.number(kept), float), column.key
        assert column.number({}) is None
    for figure in probe.figures:
        assert figure.draw({"arm": [kept, kept]}) is not None or figure.name == "flips"
    assert probe.images >= 100
