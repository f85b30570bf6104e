"""Verdicts: what heads read from their companions, over images, over seeds, and over several arms.

A swap report answers three questions about one head. Heads that were trained alike from several
seeds answer them together, and the answers about several arms are one family of tests.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...reporting.estimates import mean_of
from ..intervals import LEAST_IMAGES, LEVEL, Interval, contrast, holm

# Nats, by which a head must be worse for a verdict to name what it reads. Less means nothing,
# however sure: matching the classes of companions costs a head that can read nothing 0.005 nats.
NEGLIGIBLE = 0.01


@dataclass(frozen=True)
class Question:
    """A question about a head, answered by the difference between two swaps of the same RoIs.

    Attributes:
        field: where a swap report has the answer.
        name: of the difference.
        thing: what the head reads if the difference is above 0.
        after, before: the swaps.
        cheating: whether a head that reads it looks at what other RoIs are.
        control: another swap, which must be above `before`, too; "": there is none.
    """

    field: str
    name: str
    thing: str
    after: str
    before: str
    cheating: bool
    control: str = ""


QUESTIONS = (
    Question("label_leakage", "label leakage", "labels", "any_class", "same_class", True),
    Question(
        "image_dependence",
        "image dependence",
        "the image's statistics",
        "same_class",
        "resampled_class",
        False,
        # Matching classes costs a little by itself. Other images of any classes must cost, too.
        control="any_class",
    ),
    Question(
        "foreground_dependence",
        "foreground dependence",
        "the number of foreground RoIs",
        "foreground",
        "resampled_class",
        True,
    ),
)


@dataclass(frozen=True)
class Answer:
    """The answer to one question about the heads of one arm, in nats of classification loss.

    Attributes:
        question: which one.
        mean: the mean over the seeds.
        over_seeds: Student's 95% interval; None with one seed.
        over_images: the 95% bootstrap interval over images, each drawn with its RoIs of all seeds.
        p: one-sided p-value of a mean above 0; see `answers`. Where the question has a control,
            the larger one of the two, so that both must be above 0.
        detectable: the smallest true mean that would be found in 4 of 5 such studies, as strictly
            as the first step of Holm's correction tests; at least what is not negligible.
        rois, images, seeds: how many were measured; RoIs of all seeds.
        asked: of how many RoIs; the others found too few companions or, where the question is
            about the number of foreground RoIs, it would not have changed.
        error, freedom: standard error of the mean over images and seeds, its degrees of freedom.
        read: whether the mean is above 0 by Holm's correction over all that is asked, and not
            negligible.
    """

    question: Question
    mean: float
    over_seeds: Interval | None
    over_images: Interval
    p: float
    detectable: float
    rois: int
    images: int
    seeds: int
    asked: int
    error: float
    freedom: float
    read: bool = False

    @property
    def open(self) -> bool:
        """Return whether it would be read by its test alone, and is not after Holm's correction."""
        return not self.read and self.p <= LEVEL and self.mean >= NEGLIGIBLE

    def exceeds(self, other: "Answer") -> bool:
        """Return whether the 95% intervals over images and seeds say that this mean is higher."""
        from scipy import stats

        reach = [stats.t.ppf(1 - LEVEL, a.freedom) * a.error for a in (self, other)]
        return bool(self.mean - reach[0] > other.mean + reach[1])


def answers(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[Answer, ...]]:
    """Answer each question about each arm, all of them as one family corrected after Holm.

    With one seed, p is that of the bootstrap over images. With several, the squared standard error
    is the sum of that of the bootstrap over images and of the squared error over seeds, and p is
    Student's, with degrees of freedom after Satterthwaite (1946). So other seeds and other images
    would give the same answer. This is a little too strict: what only this seed does on only this
    image counts in both.

    Args:
        arms: the swap reports of each arm as mappings, one for each seed. All heads are probed on
            the same images.
    """
    first = {arm: [_answer(q, reports) for q in QUESTIONS] for arm, reports in arms.items()}
    family = [answer for of_arm in first.values() for answer in of_arm]
    read = dict(zip(map(id, family), holm([a.p for a in family]), strict=True))
    tests = sum(not math.isnan(a.p) for a in family)
    return {
        arm: tuple(
            dataclasses.replace(
                a,
                read=read[id(a)] and a.mean >= NEGLIGIBLE,
                detectable=_detectable(a, tests),
            )
            for a in of_arm
        )
        for arm, of_arm in first.items()
    }


def answers_of(report: Mapping[str, Any]) -> tuple[Answer, ...]:
    """Answer each question about one head, from the mapping of its swap report."""
    return answers({"": [report]})[""]


def predicate(found: Sequence[Answer]) -> str:
    """Return what the heads of an arm read, as `phrase` puts it."""
    read, undecided = ([a.question.thing for a in found if getattr(a, k)] for k in ("read", "open"))
    return phrase(read, [a.question.thing for a in found if math.isnan(a.p)], undecided)


def phrase(read: Sequence[str], unknown: Sequence[str] = (), undecided: Sequence[str] = ()) -> str:
    """Return what a head reads, as the predicate of a sentence about it.

    Args:
        read: things of `QUESTIONS` that it reads.
        unknown: those that could not be measured.
        undecided: those that it reads by a test of its own, but not after Holm's correction.
    """
    usual = [question.thing for question in QUESTIONS[:2]]
    missing = [thing for thing in usual if thing in unknown]
    left_out = [question.thing for question in QUESTIONS if question.thing in unknown]
    if undecided:
        maybe = f"{' and '.join(undecided)}, but not after correction"
        verdict = f"reads {' and '.join(read)} (and {maybe})" if read else f"reads {maybe}"
    elif read:
        verdict = f"reads {' and '.join(read)}"
    elif len(missing) == len(usual):
        verdict = f"cannot be judged: fewer than {LEAST_IMAGES} images have companions"
    elif missing:
        verdict = f"does not read {next(thing for thing in usual if thing not in missing)}"
    else:
        verdict = f"reads neither {' nor '.join(usual)}"
    return verdict + (f" (not measured: {', '.join(left_out)})" if left_out else "")


def _answer(question: Question, reports: Sequence[Mapping[str, Any]]) -> Answer:
    answer = _difference(question, question.after, reports)
    if question.control:
        control = _difference(question, question.control, reports)
        answer = dataclasses.replace(answer, p=float(np.maximum(answer.p, control.p)))
    return answer


def _difference(question: Question, after: str, reports: Sequence[Mapping[str, Any]]) -> Answer:
    differences: list[float] = []
    images: list[int] = []
    weights: list[float] = []
    means: list[float] = []
    asked = 0
    for report in reports:
        rows = report.get("per_roi") or {}
        names = (f"{name}_classification" for name in (after, question.before))
        columns = zip(*(rows.get(name) or () for name in (*names, "image", "weight")), strict=False)
        asked += len(rows.get("image") or ())
        known = [(a - b, i, w) for a, b, i, w in columns if a is not None and b is not None]
        if not known:
            continue
        change, image, weight = zip(*known, strict=True)
        share = np.array(weight) / sum(weight)  # seeds weigh alike
        means.append(float(share @ np.array(change)))
        differences += change
        images += image
        weights += share.tolist()
    pooled = contrast(differences, images, weights)
    over_images = Interval(pooled.mean, pooled.low, pooled.high)
    error = pooled.error
    if len(means) < 2 or math.isnan(pooled.p):
        over_seeds, p, freedom = None, pooled.p, math.inf
    else:
        from scipy import stats

        seeds = mean_of(means)
        over_seeds = Interval(seeds.mean, seeds.low, seeds.high)
        parts = error**2, seeds.spread**2 / len(means)
        error, freedom = math.sqrt(sum(parts)), math.inf
        if error > 0:
            degrees = max(pooled.images - 1, 1), len(means) - 1
            freedom = error**4 / sum(v**2 / d for v, d in zip(parts, degrees, strict=True))
            p = float(stats.t.sf(pooled.mean / error, freedom))
        else:
            p = 0.0 if pooled.mean > 0 else 1.0
    return Answer(
        question,
        pooled.mean,
        over_seeds,
        over_images,
        p,
        math.nan,
        pooled.rois,
        pooled.images,
        len(means),
        asked,
        error,
        freedom,
    )


def _detectable(answer: Answer, tests: int) -> float:
    if math.isnan(answer.p):
        return math.nan
    from scipy import stats

    quantiles = stats.t.ppf([1 - LEVEL / tests, 0.8], answer.freedom)
    return max(float(quantiles.sum() * answer.error), NEGLIGIBLE)
