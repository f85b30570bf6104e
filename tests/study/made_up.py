"""A results.json with made-up numbers whose summary is known."""

from pathlib import Path

import numpy as np
from PIL import Image

HOSTILE = "<script>document.title='gone'</script> \"arm\" & 'co' $\\bad_{$"


def interval(mean: float, half: float = 0.01) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def run(arm: str, seed: int, *, swap: float, ap: float, null: float = 0.0, flips=()) -> dict:
    swaps = {"change": interval(swap), "null": interval(null)}
    layers = [
        {"name": f"box_head.conv{i}.norm", "label": "classes", "bits": bits, "null_std": 0.02}
        for i, bits in ((1, swap), (2, 2 * swap))
    ]
    rows = [
        {"split": split, "statistics": kind, "loss": 0.5 + swap, "accuracy": 0.8}
        for split in ("train", "val")
        for kind in ("minibatch", "population", "precise")
    ]
    return {
        "arm": arm,
        "seed": seed,
        "classes": [HOSTILE, "b"],
        "training": {"loss_cls": 0.5},
        "curves": {"iteration": [0, 10, 20], "loss_cls": [1.0, 0.7, 0.5]},
        "evaluation": {
            kind: {"shapes_val": {"bbox": {"AP": ap + more, "AP50": 2 * ap}}}
            for kind, more in (("population", 0.0), ("minibatch", 5.0), ("precise", 1.0))
        },
        "probes": {
            "companion_swap": {
                "classification": swaps,
                "flip_rate": interval(swap / 2),
                "flips": list(flips),
            },
            "cross_roi_jacobian": {"same_image": interval(swap / 4)},
            "statistics_probe": {"layers": layers},
            "decomposition": {"rows": rows},
        },
    }


def study(arms: dict[str, dict], **settings) -> dict:
    """Results of {name: {"runs": [...], ...}}; the rest is filled in."""
    listed = [{"name": name, "options": arm.pop("options", {})} for name, arm in arms.items()]
    return {
        "schema": 1,
        "study": {"name": "made up", "question": "Does it?", "arms": listed, **settings},
        "versions": {"torch": "2.0", "git commit": 40 * "a"},
        "arms": {name: {"runs": [], "failed": [], **arm} for name, arm in arms.items()},
    }


def flip(folder: Path) -> dict:
    """A flipped RoI, with its picture on disk."""
    file = folder / "image.png"
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(file)
    place = (str(file), [5.0, 5.0, 25.0, 30.0])
    return {
        "file_name": place[0],
        "box": place[1],
        "label": 0,
        "own_prediction": 0,
        "swapped_prediction": 1,
        "own_companions": [place] * 3,
        "foreign_companions": [place] * 20,
    }
