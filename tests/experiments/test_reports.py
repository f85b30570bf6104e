"""The sections of the document, from made-up findings whose verdicts are known."""

import pytest

from bn_detect.commands.experiments import EXPERIMENTS, by_arm, grouped
from bn_detect.experiments import averages, domains, same_class, sizes
from bn_detect.experiments.document import write_document

SEEDS = (1, 2, 3)


def jitter(seed: int) -> float:
    return 0.01 * seed


def size_of(arm: str) -> int:
    return int(arm.split("_")[1])


def made_up(letter: str, *, flat: bool = False) -> dict:
    """Findings as in the paper, or `flat`: no effect anywhere but for noise."""
    jobs = [job for seed in SEEDS for job in EXPERIMENTS[letter].jobs(seed, ())]
    found = {}
    for job in jobs:
        noise = jitter(job.seed) * (-1) ** job.seed
        bad = 0.0 if flat else 10.0
        if job.experiment == "sizes":
            worse = bad / size_of(job.arm)
            keys = ("train_minibatch", "val_minibatch", "val_ema", "val_precise_own")
            result = {k: 5 + noise + worse / 2 for k in keys}
            result |= {"val_population": 5 + worse + 2 * noise, "val_frozen": 5 - noise}
        elif job.experiment == "averages":
            late = bad * (1 if job.arm == "scale_1" else 3)
            errors = [
                [i, 6, 6 + late / i, 6 + late, 6 + late, 6 + (1 + i) * noise] for i in range(1, 9)
            ]
            samples = {str(n): [6 + bad / n + noise] * 2 for n in averages.SAMPLES}
            means = [[i, 0.5, 0.4, 0.3, 0.2, 0.1, None if i % 2 else 0.45] for i in range(1, 9)]
            result = {
                "errors": errors,
                "means": means,
                "samples": {"half": samples, "end": samples},
            }
        elif job.experiment == "domains":
            names = ("clean", *domains.CORRUPTIONS)
            table = {t: {s: 5 + bad * (s != t) + noise * (s == t) for s in names} for t in names}
            result = {"errors": {str(severity): table for severity in domains.SEVERITIES}}
        else:
            leak = bad * (job.arm == "same_class")
            result = {k: 5 + noise for k in ("training", "val_same_class", "val_mixed")}
            result["val_population"] = 5 + leak + noise * len(job.arm)
        found[job] = result
    return by_arm(jobs, found)


@pytest.mark.parametrize(("letter", "claims"), [("a", 6), ("b", 2), ("c", 5), ("d", 12), ("e", 4)])
def test_verdicts_say_what_the_numbers_say(letter, claims):
    section = EXPERIMENTS[letter].section(made_up(letter))
    assert section.text.count("**seen**") == claims
    flat = EXPERIMENTS[letter].section(made_up(letter, flat=True)).text
    assert "**seen**" not in flat
    assert flat.count("**not decided") + flat.count("**the opposite") == claims


def test_numbers_are_means_over_the_seeds():
    text = EXPERIMENTS["a"].section(made_up("a")).text
    row = next(line for line in text.splitlines() if line.startswith("|        2 "))
    assert row.split("|")[4].split()[0] == "10.0"  # 5 + 10 / 2 under population statistics
    averages_text = EXPERIMENTS["c"].section(made_up("c")).text
    assert averages_text.count("32 images are within 0.5 points of 512") == 4  # 10 / 32 - 10 / 512


def test_the_document_holds_every_section_and_its_pictures(tmp_path):
    sections = {letter: EXPERIMENTS[letter].section(made_up(letter)) for letter in EXPERIMENTS}
    write_document(tmp_path / "docs/experiments.md", sections, "Facts.")
    text = (tmp_path / "docs/experiments.md").read_text()
    for letter, section in sections.items():
        assert f"## ({letter})" in text
        for name, (caption, _) in section.figures.items():
            assert f"![{caption}](images/experiment_{name})" in text
            assert (tmp_path / "docs/images" / f"experiment_{name}").stat().st_size > 5000


def test_runs_that_experiments_share_are_done_once_and_in_order():
    jobs = [job for letter in "ab" for job in EXPERIMENTS[letter].jobs(1, ())]
    groups = grouped(jobs)
    assert len(groups) == len(sizes.SIZES) * len(sizes.STAGES)
    assert all(len(group) == 2 and group[1].begins == group[0].arm for group in groups)
    assert len(grouped(EXPERIMENTS["e"].jobs(1, ()))) == len(same_class.ARMS)
