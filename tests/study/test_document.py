"""A document on several studies, with claims and with figures that a file asks for."""

import re

from bn_detect.study.document import write_document

from .made_up import finished, study

SERIES = [{"column": "val_precise", "label": "validation", "arm": "{x}"}]
CHART = {"name": "sizes", "caption": "Errors", "series": SERIES, "over": "x", "panels": None}
BARS = {"name": "bars", "caption": "Bars", "series": SERIES, "over": None, "panels": None}


def results(name: str) -> dict:
    arms = {
        str(size): {
            "at": {"x": str(size)},
            "runs": [
                finished(str(size), seed, {"classification_error": {"val_precise": size + seed}})
                for seed in (1, 2)
            ],
        }
        for size in (2, 4)
    }
    sides = {k: {"arm": a, "column": "val_precise"} for k, a in (("higher", "4"), ("lower", "2"))}
    claim = {"claim": "4 above 2", "otherwise": "", **sides}
    charts = [{**chart, "label": "error", "log": True} for chart in (CHART, BARS)]
    return study(
        arms, name=name, file=f"{name}.yaml", text="How.", figures=charts, verdicts=[claim]
    )


def test_a_section_for_each_study(tmp_path):
    path = tmp_path / "docs" / "both.md"
    write_document(path, "Both", {tmp_path / name: results(name) for name in ("one", "two")})
    text = path.read_text()
    assert text.startswith("# Both\n\n8 runs, 2 seeds, 120 seconds")
    assert text.count("## one") == text.count("## two") == 1 and text.count("How.") == 2
    assert text.count("| 2     | 2       | 3.5 ± 0.7 [") == 2
    assert text.count("* 4 above 2: **seen** (+2.0 [+2.0, +2.0] points).") == 2
    pictures = re.findall(r"!\[(.+?)\]\((.+?)\)", text)
    assert [caption for caption, _ in pictures] == ["Errors", "Bars"] * 2
    assert len({name for _, name in pictures}) == 4
    for _, name in pictures:
        assert (path.parent / name).read_bytes().startswith(b"\x89PNG")
