"""What experiments (a) and (b) found."""

from matplotlib.figure import Figure
from tabulate import tabulate

from ..study.estimates import Estimate, over_seeds
from .numbers import cell, difference, verdict
from .section import Found, Section, band, values
from .sizes import SIZES, STAGES

CURVES = {
    "train_minibatch": "training set, mini-batch statistics",
    "val_minibatch": "validation, mini-batch statistics",
    "val_population": "validation, population statistics",
}
SMALL, LARGE = SIZES[0], SIZES[-1]


def section_a(found: Found) -> Section:
    """Three curves over the normalization batch size."""
    text = ["## (a) Normalization batch size", "", _SETTING_A]
    for stage, positions in STAGES.items():
        smallest = values(found, f"{stage}_{SMALL}", "val_population")
        rows = []
        for size in SIZES:
            each = {key: values(found, f"{stage}_{size}", key) for key in _COLUMNS}
            rise = (
                ""
                if size == SMALL
                else cell(difference(smallest, each["val_population"]), sign="+")
            )
            rows.append([size, *(cell(over_seeds(v)) for v in each.values()), rise])
        text += ["", f"### {_network(stage, positions)}", "", "Error, %:", ""]
        headers = ["images", *_COLUMNS.values(), f"population: {SMALL} images - this"]
        text += [tabulate(rows, headers, tablefmt="github"), ""]
        text += _verdicts_a(found, stage)
    return Section("\n".join(text), {"sizes.png": (_CAPTION_A, _draw(found, CURVES))})


def section_b(found: Found) -> Section:
    """FrozenBN for the last fifth, and mini-batch statistics at inference."""
    text = ["## (b) What repairs a small batch", "", _SETTING_B]
    for stage, positions in STAGES.items():
        rows = []
        for size in SIZES:
            regular, minibatch = (
                values(found, f"{stage}_{size}", key) for key in ("val_population", "val_minibatch")
            )
            frozen = values(found, f"{stage}_{size}_frozen", "val_frozen")
            cells = [cell(over_seeds(v)) for v in (regular, frozen, minibatch)]
            gaps = [cell(difference(v, regular), sign="+") for v in (frozen, minibatch)]
            rows.append([size, *cells, *gaps])
        text += ["", f"### {_network(stage, positions)}", "", "Validation error, %:", ""]
        text += [tabulate(rows, _HEADERS_B, tablefmt="github"), ""]
        repaired = difference(
            values(found, f"{stage}_{SMALL}", "val_population"),
            values(found, f"{stage}_{SMALL}_frozen", "val_frozen"),
        )
        claim = f"FrozenBN late lowers the error at {SMALL} images"
        rise = cell(_rise(found, stage), sign="+")
        why = f"There is little to repair: {SMALL} images are {rise} points above {LARGE}."
        text.append(verdict(claim, repaired, why))
    curves = {"val_frozen": "FrozenBN for the last fifth", **CURVES}
    del curves["train_minibatch"]
    return Section("\n".join(text), {"frozen.png": (_CAPTION_B, _draw(found, curves))})


def _verdicts_a(found: Found, stage: str) -> list[str]:
    def of(size: int, key: str) -> list[float]:
        return values(found, f"{stage}_{size}", key)

    noise = difference(of(SMALL, "train_minibatch"), of(LARGE, "train_minibatch"))
    behind = difference(of(SMALL, "val_population"), of(SMALL, "val_minibatch"))
    return [
        verdict(
            f"Under population statistics {SMALL} images are worse than {LARGE}",
            _rise(found, stage),
            _ALIKE,
        ),
        verdict(
            f"So is the training error under mini-batch statistics at {SMALL} images", noise, _FITS
        ),
        verdict(
            f"At {SMALL} images population statistics are worse than mini-batch statistics",
            behind,
            _TWO_VALUES if STAGES[stage] == 1 else _ALIKE,
        ),
    ]


def _rise(found: Found, stage: str) -> Estimate:
    """Of the error under population statistics from the largest batch to the smallest."""
    return difference(
        *(values(found, f"{stage}_{size}", "val_population") for size in (SMALL, LARGE))
    )


def _network(stage: str, positions: int) -> str:
    many = "s" if positions > 1 else ""
    return f"Network up to {stage}: {positions} position{many} of an image in its last layers"


def _draw(found: Found, curves: dict[str, str]) -> Figure:
    figure = Figure(figsize=(9, 3.6))
    for axis, (stage, positions) in zip(figure.subplots(1, 2), STAGES.items(), strict=True):
        for key, label in curves.items():
            suffix = "_frozen" if key == "val_frozen" else ""
            arms = [f"{stage}_{size}{suffix}" for size in SIZES]
            band(axis, SIZES, [over_seeds(values(found, arm, key)) for arm in arms], label)
        axis.set_xscale("log", base=2)
        axis.set_yscale("symlog", linthresh=5)
        axis.set_ylim(-0.5, 110)
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        axis.set_yticks([0, 2, 5, 10, 20, 50], ["0", "2", "5", "10", "20", "50"])
        axis.set_xlabel("normalization batch size, images")
        axis.set_title(f"{stage}, {positions} position{'s' if positions > 1 else ''}", fontsize=9)
        axis.set_ylabel("error, % (logarithmic above 5)")
    figure.axes[0].legend(fontsize=8)
    return figure


_COLUMNS = {
    **CURVES,
    "val_ema": "validation, moving average",
    "val_precise_own": "validation, PreciseBN in batches of that size",
}
_HEADERS_B = [
    "images",
    "regular",
    "FrozenBN for the last fifth",
    "mini-batch statistics at inference",
    "FrozenBN - regular",
    "mini-batch - regular",
]
_SETTING_A = (
    "A step has 64 images whatever the normalization batch is: each so many consecutive images are "
    "normalized by themselves (`MODEL.ROI_BN.BATCH images`). Population statistics are PreciseBN's "
    "over the training images in batches of 64. The paper (ImageNet, ResNet-50): 32.5% at 2 "
    "images, 26.4 at 4, 24.3 at 8, 23.5 at 16, 23.7 at 1024 under population statistics."
)
_SETTING_B = (
    "FrozenBN goes on from the checkpoint after 4/5 of the iterations of (a)'s run, with the "
    "statistics of a PreciseBN pass (`MODEL.ROI_BN.FREEZE_ITER`). The paper, for 2 images: "
    "regular 32.5%, FrozenBN late 25.2, mini-batch statistics at inference 26.0; for 16: 23.5, "
    "23.9, 24.7."
)
_ALIKE = (
    "Likely because digits are alike, white on black, centred, of one size: what is learned with "
    "the statistics of two of them holds with those of all, unlike in ImageNet, and mini-batch "
    "statistics at inference only add noise. This was not tested further."
)
_FITS = "This network fits the 797 training images under any normalization batch."
_TWO_VALUES = (
    "Two values of a channel are normalized to +1 and -1, whatever they are: the network hardly "
    "fits its training images, and mini-batch statistics lose as much at inference. The networks "
    "of the paper have 49 positions there."
)
_CAPTION_A = "Error over the normalization batch size: mean and 95% interval."
_CAPTION_B = "Validation error over the normalization batch size: mean and 95% interval."
