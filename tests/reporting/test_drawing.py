"""Figures share one palette, and an arm looks the same in all of them."""

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from bn_detect.reporting.drawing import (
    COLOURS,
    GREYS,
    WIDEST,
    arms_of_report,
    bars,
    panels,
    style,
)
from bn_detect.reporting.estimates import mean_of

# What a reader without green-sensitive cones sees (Machado et al. 2009, severity 1), linear RGB.
DEUTERANOPIA = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(1)


def seen(colour: str) -> np.ndarray:
    """CIE Lab of what that reader sees, in which distances are differences to the eye."""
    values = np.array(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    ratio = XYZ @ np.clip(DEUTERANOPIA @ linear, 0, 1) / WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours) -> float:
    seen_all = [seen(colour) for colour in colours]
    return min(np.linalg.norm(a - b) for i, a in enumerate(seen_all) for b in seen_all[:i])


def test_a_reader_who_is_blind_to_green_can_tell_the_colours_apart():
    assert nearest(COLOURS) > 15
    assert nearest(["#2ca02c", "#d62728"]) < 10  # matplotlib's green and red


def test_an_arm_looks_the_same_where_others_are_missing():
    arms = [f"arm {i}" for i in range(10)]
    with arms_of_report(arms):
        looks = [style(arm, filled=True) for arm in arms]
        figure = bars(["group"], {arms[3]: [mean_of([1.0])], arms[9]: [mean_of([2.0])]}, "")
        assert style("arm 3", 0) == {"color": COLOURS[3], "linestyle": "-"}
    faces = [to_hex(bar.get_facecolor()).upper() for bar in figure.axes[0].patches]
    assert faces == [COLOURS[3], COLOURS[1]]
    assert figure.axes[0].patches[1].get_hatch()  # arm 1 has the same colour, and no hatch
    assert len({tuple(look.items()) for look in looks}) == 10
    assert style("arm 3", 0)["color"] == COLOURS[0]  # the report is over


def test_kinds_of_statistics_have_greys_of_their_own():
    for number, kind in enumerate(("precise", "minibatch", "population")):
        assert style(kind, number)["color"] == GREYS[kind]


def test_panels_are_no_wider_than_a_page():
    for number in (1, 4, 9):
        figure, axes = panels(number, 3.2, 3.0)
        assert len(axes) == len(figure.axes) == number
        assert figure.get_figwidth() <= WIDEST
