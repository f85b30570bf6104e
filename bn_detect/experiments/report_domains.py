"""What experiment (d) found."""

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from ..study.estimates import Estimate, over_seeds
from .domains import CLEAN, CORRUPTIONS, SEVERITIES
from .numbers import cell, difference, verdict
from .section import Found, Section

DOMAINS = (CLEAN, *CORRUPTIONS)


def section_d(found: Found) -> Section:
    """Tables {evaluation data} x {data of the statistics}."""
    text = ["## (d) Statistics of another domain", "", _SETTING]
    for severity in SEVERITIES:
        rows = [
            [target, *(cell(over_seeds(_errors(found, severity, target, s))) for s in DOMAINS)]
            for target in DOMAINS
        ]
        headers = ["evaluated on", *(f"statistics of {domain}" for domain in DOMAINS)]
        text += ["", f"### Severity {severity}", "", "Validation error, %:", ""]
        text += [tabulate(rows, headers, tablefmt="github"), ""]
        text += [
            verdict(
                f"On {domain}, its own statistics are better than clean ones",
                _gain(found, severity, domain, CLEAN, domain),
                _harmless(found, severity, domain),
            )
            for domain in CORRUPTIONS
        ]
        text += [
            verdict(
                f"On clean images, the statistics of {domain} are worse than their own",
                _gain(found, severity, CLEAN, domain, CLEAN),
                _harmless(found, severity, domain),
            )
            for domain in CORRUPTIONS
        ]
    return Section("\n".join(text), {"domains.png": (_CAPTION, _draw(found))})


def _errors(found: Found, severity: int, target: str, source: str) -> list[float]:
    return [run["errors"][str(severity)][target][source] for run in found["clean"]]


def _gain(found: Found, severity: int, target: str, worse: str, better: str) -> Estimate:
    return difference(*(_errors(found, severity, target, source) for source in (worse, better)))


def _harmless(found: Found, severity: int, domain: str) -> str:
    """What the corruption costs in the first place."""
    cost = difference(*(_errors(found, severity, target, CLEAN) for target in (domain, CLEAN)))
    text = f"Under clean statistics {domain} costs these digits {cell(cost, sign='+')} points"
    return f"{text}." if cost.low > 0 else f"{text}: there is nothing to win back. {_NO_DETAIL}"


def _draw(found: Found) -> Figure:
    figure = Figure(figsize=(9, 3.2))
    for axis, severity in zip(figure.subplots(1, len(SEVERITIES)), SEVERITIES, strict=True):
        for shift, which in ((-0.2, CLEAN), (0.2, "target")):
            estimates = [
                over_seeds(_errors(found, severity, d, CLEAN if which == CLEAN else d))
                for d in CORRUPTIONS
            ]
            means = [e.mean for e in estimates]
            ends = np.array([[e.mean - e.low, e.high - e.mean] for e in estimates]).T
            x = np.arange(len(CORRUPTIONS)) + shift
            axis.bar(x, means, 0.38, yerr=ends, label=f"{which} statistics")
        axis.set_xticks(range(len(CORRUPTIONS)), [c.replace("_", "\n") for c in CORRUPTIONS])
        axis.set_title(f"severity {severity}", fontsize=9)
        axis.set_ylabel("validation error, %")
    figure.axes[0].legend(fontsize=8)
    return figure


_SETTING = (
    "One network, trained on clean images with all 64 of a step as the normalization batch. Its "
    "statistics are recomputed by PreciseBN from the training images of a domain, without their "
    "labels, and it is evaluated on the validation images of a domain. The paper (ImageNet, "
    "severity 3): contrast 40.8 -> 33.1, gaussian_noise 64.4 -> 52.5, jpeg_compression "
    "40.4 -> 36.7; clean images 23.4, with the statistics of contrast 39.7."
)
_NO_DETAIL = "8x8 pixels enlarged to 32x32 lack the fine detail that it destroys in photographs."
_CAPTION = "Validation error on corrupted images under clean and under their own statistics."
