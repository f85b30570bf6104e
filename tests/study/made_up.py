"""A results.json with made-up numbers whose summary is known."""

from pathlib import Path

import numpy as np
from PIL import Image

HOSTILE = "<script>document.title='gone'</script> \"arm\" & 'co' $\\bad_{$"


def interval(mean: float, half: float = 0.01) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def readings(labels: float, image: float, images: int = 40) -> dict:
    """Two RoIs an image, whose changes differ by 0.01 from image to image."""
    noise = [0.01 * (-1) ** i for i in range(images) for _ in range(2)]
    return {
        "image": [i for i in range(images) for _ in range(2)],
        "weight": [1.0] * (2 * images),
        "any_class_classification": [labels + image + 2 * n for n in noise],
        "same_class_classification": [image + n for n in noise],
        "resampled_class_classification": [0.0] * (2 * images),
        "foreground_classification": [None] * (2 * images),
    }


def run(arm: str, seed: int, *, swap: float, ap: float, image: float = 0.0, flips=()) -> dict:
    """A run whose swap is label leakage, but for `image`."""
    swaps = {"change": interval(swap + image), "null": interval(0.0)}
    layers = [
        {"name": f"box_head.conv{i}.norm", "label": "classes", "bits": bits, "null_std": 0.02}
        for i, bits in ((1, swap), (2, 2 * swap))
    ]
    rows = [
        {"split": split, "statistics": kind, "loss": 0.5 + swap, "accuracy": 0.8}
        for split in ("train", "val")
        for kind in ("minibatch", "population", "precise")
    ]
    measures = {
        "training_loss": {
            "last": {"loss_cls": 0.5},
            "curves": {"iteration": [0, 10, 20], "loss_cls": [1.0, 0.7, 0.5]},
        },
        "evaluation": {
            "test_stats": "population",
            **{
                kind: {"shapes_val": {"bbox": {"AP": ap + more, "AP50": 2 * ap}}}
                for kind, more in (("population", 0.0), ("minibatch", 5.0), ("precise", 1.0))
            },
        },
        "companion_swap": {
            "classes": [HOSTILE, "b"],
            "classification": swaps,
            "flip_rate": interval(swap / 2),
            "label_leakage": {"all": interval(swap / 2)},
            "image_dependence": {"all": interval(-0.05)},
            "rois": 640,
            "images": 160,
            "flips": list(flips),
            "per_roi": readings(swap, image),
        },
        "cross_roi_jacobian": {"same_image": interval(swap / 4)},
        "statistics_probe": {"layers": layers, "all_layers": layers[1:]},
        "decomposition": {"rows": rows},
    }
    return finished(arm, seed, measures)


def finished(arm: str, seed: int, measures: dict, options: dict | None = None) -> dict:
    """A measurements.json of these measures."""
    return {
        "arm": arm,
        "seed": seed,
        "train_seconds": 10.0,
        "measure_seconds": 5.0,
        "measures": measures,
        "measured": {name: (options or {}).get(name, {}) for name in measures},
    }


def study(arms: dict[str, dict], **settings) -> dict:
    """Results of {name: {"runs": [...], ...}}; the rest is filled in."""
    listed = [
        {"name": n, "template": "{x}", "at": a.pop("at", {}), "options": a.pop("options", {})}
        for n, a in arms.items()
    ]
    named = {"name": "made up", "question": "Does it?", "text": "", "file": "made_up.yaml"}
    return {
        "schema": 2,
        "study": {**named, "arms": listed, **settings},
        "command": "bn-detect study made_up.yaml",
        "versions": {"torch": "2.0", "git commit": 40 * "a"},
        "arms": {
            name: {"runs": [], "failed": [], "reference": {}, **arm} for name, arm in arms.items()
        },
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
