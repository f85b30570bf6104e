"""Measure, before any training, what the companions of an object tell about its class.

A head with BatchNorm can read of an object's companions what a classifier can: `leak_potential`
trains one on the class histogram of the other objects of the image. Where it is no better than the
classes' frequencies, nothing can leak; with one class there is nothing to tell.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from .errors import DatasetError
from .mapper import read_image

FOLDS = 5
CROP = 16  # px, side of the crop of an object in its weak look
COMPONENTS = 30  # principal components of the crops
LARGEST = 20_000  # objects; of a larger dataset, images are taken at random
RESAMPLES = 1000
GUESSES = ("prior", "companions", "itself, weakly", "both")


@dataclass(frozen=True)
class Guess:
    """Scores of a guess of classes on held-out images.

    Attributes:
        accuracy: share of objects guessed right, in [0, 1].
        bits: mean negative log2 of the probability given to the class.
        told: bits about the class, "prior" minus this; with its 95% interval `told_interval`
            (bootstrap over images).
    """

    accuracy: float
    bits: float
    told: float
    told_interval: tuple[float, float]


@dataclass(frozen=True)
class LeakPotential:
    """The guesses of one dataset, by the names in `GUESSES`, and what they were made of."""

    name: str
    images: int
    objects: int
    alone: int
    classes: int
    guesses: dict[str, Guess]


def leak_potential(name: str, *, seed: int = 0) -> LeakPotential:
    """Cross-validate by image how well the class of an object is guessed.

    Four multinomial logistic regressions see nothing ("prior"), the numbers of companions of each
    class ("companions"), a weak look at the object itself (principal components of its 16 x 16
    crop, mean and spread of its colours, gradients, size and shape of its box), or both.

    Args:
        name: a registered dataset with boxes. Objects with iscrowd=1 do not count.
        seed: of the folds, and of the choice of images where there are too many.

    Raises:
        DatasetError: the dataset has no boxes, or objects on fewer images than there are folds.
    """
    if name not in DatasetCatalog:
        raise DatasetError(f"dataset {name!r} is not registered")
    rng = np.random.default_rng(seed)
    images = [(d, _objects(d)) for d in DatasetCatalog.get(name)]
    images = _some([pair for pair in images if pair[1]], rng)
    if len(images) < FOLDS:
        raise DatasetError(
            f"dataset {name!r}: {len(images)} images have objects with boxes; at least {FOLDS} are "
            "needed"
        )
    image = np.repeat(np.arange(len(images)), [len(objects) for _, objects in images])
    found = [o["category_id"] for _, objects in images for o in objects]
    classes, label = np.unique(found, return_inverse=True)
    companions = companion_counts(label, image, len(classes))
    alone = int((companions.sum(1) == 0).sum())
    sizes = {"images": len(images), "objects": len(label), "alone": alone}
    number = len(MetadataCatalog.get(name).get("thing_classes", classes))
    if len(classes) == 1:
        nothing = Guess(1.0, 0.0, 0.0, (0.0, 0.0))
        return LeakPotential(name, **sizes, classes=number, guesses=dict.fromkeys(GUESSES, nothing))
    crops, itself = _looks(images, name)
    histogram, none = _histogram(companions), np.zeros((len(label), 0))
    features = {
        "prior": (none, none),
        "companions": (histogram, none),
        "itself, weakly": (itself, crops),
        "both": (np.concatenate([histogram, itself], axis=1), crops),
    }
    fold = rng.permutation(len(images))[image] % FOLDS
    correct, bits = {}, {}
    for guess, (some, pixels) in features.items():
        correct[guess], bits[guess] = cross_validated(some, pixels, label, fold, len(classes))
    guesses = {
        guess: Guess(
            float(correct[guess].mean()),
            float(bits[guess].mean()),
            float((bits["prior"] - bits[guess]).mean()),
            _interval(bits["prior"] - bits[guess], image, rng),
        )
        for guess in features
    }
    return LeakPotential(name, **sizes, classes=number, guesses=guesses)


def companion_counts(label: np.ndarray, image: np.ndarray, classes: int) -> np.ndarray:
    """Return (N, classes) numbers of the other objects of an object's image, by class.

    Args:
        label: (N,) classes from 0. image: (N,) images from 0.
    """
    counts = np.zeros((image.max() + 1, classes), dtype=np.int64)
    np.add.at(counts, (image, label), 1)
    companions = counts[image]
    companions[np.arange(len(label)), label] -= 1
    return companions


def cross_validated(
    features: np.ndarray, crops: np.ndarray, label: np.ndarray, fold: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Guess each object's class by a classifier that was fitted on the other folds.

    Args:
        features: (N, F). crops: (N, P), of which principal components are taken. Where both F and P
            are 0, classes are guessed by their frequency.
        label: (N,) in [0, classes). fold: (N,) folds.

    Returns:
        (N,) bool, whether the likeliest class is right; (N,) bits, -log2 of its probability.
    """
    probability = np.zeros((len(label), classes))
    joined = np.concatenate([features, crops], axis=1)
    for held_out in np.unique(fold):
        train, test = fold != held_out, fold == held_out
        # A class that is rare may be absent from the other folds: count one more object of each.
        frequency = np.bincount(label[train], minlength=classes) + 1.0
        probability[test] = prior = frequency / frequency.sum()
        if joined.shape[1] and len(np.unique(label[train])) > 1:
            fitted = _classifier(features.shape[1], crops[train].shape)
            fitted.fit(joined[train], label[train])
            guessed = np.zeros((test.sum(), classes))
            guessed[:, fitted.classes_] = fitted.predict_proba(joined[test])
            probability[test] = 0.99 * guessed + 0.01 * prior
    own = probability[np.arange(len(label)), label]
    return probability.argmax(1) == label, -np.log2(own)


def _classifier(features: int, crops: tuple[int, ...]) -> Any:
    """Return a logistic regression on `features` columns and components of the columns after."""
    from sklearn.compose import ColumnTransformer  # slow to import, and needed here only
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts: list[Any] = [("features", "passthrough", slice(0, features))]
    if crops[1]:
        pca = PCA(min(COMPONENTS, *crops), random_state=0)
        parts.append(("crops", pca, slice(features, None)))
    regression = LogisticRegression(C=0.1, max_iter=300)
    return make_pipeline(ColumnTransformer(parts), StandardScaler(), regression)


def _histogram(companions: np.ndarray) -> np.ndarray:
    """Return shares of the classes, presence of the classes and the number of companions."""
    number = companions.sum(1, keepdims=True)
    return np.concatenate(
        [companions / np.maximum(number, 1), companions > 0, np.log1p(number)], axis=1
    )


def _objects(d: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the annotations that count and have an upright box in pixels."""
    upright = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    return [
        a
        for a in d.get("annotations", ())
        if not a.get("iscrowd", 0) and a.get("bbox_mode") in upright
    ]


def _some(images: list[Any], rng: np.random.Generator) -> list[Any]:
    """Return as many images, chosen at random, as have `LARGEST` objects together."""
    total = sum(len(objects) for _, objects in images)
    if total <= LARGEST:
        return images
    keep = rng.permutation(len(images))[: max(FOLDS, len(images) * LARGEST // total)]
    return [images[i] for i in sorted(keep)]


def _looks(images: list[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 3 CROP^2) pixels of the objects' crops in [0, 1], and (N, 12) other features."""
    crops, others = [], []
    for d, objects in tqdm(images, f"looking at {name}", unit="image"):
        picture = Image.fromarray(read_image(d, "RGB"))
        for each in objects:
            box = _inside(each, picture.size)
            small = picture.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
            crop = np.asarray(small) / 255
            crops.append(crop.ravel())
            grey = crop.mean(2)
            edges = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]
            side = np.log(box[2] - box[0]), np.log(box[3] - box[1])
            colour = [*crop.mean((0, 1)), *crop.std((0, 1)), np.ptp(crop.mean((0, 1)))]
            others.append([*colour, *edges, *side, side[0] - side[1]])
    return np.array(crops), np.array(others)


def _inside(annotation: dict[str, Any], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 of an annotation's box, inside the image and at least a pixel large."""
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    x0, y0 = (min(max(0.0, float(v)), limit - 1) for v, limit in zip(box[:2], size, strict=True))
    x1, y1 = (min(float(v), limit) for v, limit in zip(box[2:], size, strict=True))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _interval(
    values: np.ndarray, image: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean of `values`, resampling whole images."""
    sums = np.bincount(image, weights=values)
    counts = np.bincount(image)
    draws = rng.integers(len(counts), size=(RESAMPLES, len(counts)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def potential_table(potential: LeakPotential) -> str:
    """Return the guesses as a table, with a sentence on what they are made of and one on bits."""
    rows = []
    for guess, each in potential.guesses.items():
        low, high = each.told_interval
        told = "" if guess == "prior" else f"{each.told:.2f} [{low:.2f}, {high:.2f}]"
        rows.append((guess, f"{each.accuracy:.3f}", f"{each.bits:.2f}", told))
    header = ("known", "accuracy", "bits missing", "bits told")
    return (
        f"{potential.name}: {potential.objects} objects of {potential.classes} classes on "
        f"{potential.images} images; {potential.alone} objects have no companion\n"
        + tabulate(rows, header, disable_numparse=True)
        + "\nbits missing: cross-entropy of a guess with this known; bits told: how much less that "
        "is than the prior's"
    )
