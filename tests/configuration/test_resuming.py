"""Which settings may change when a run is resumed."""

import pytest

from bn_detect.configuration.keys import default_config
from bn_detect.configuration.resuming import changes

BEFORE = default_config().dump()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", 3),
        ("SOLVER.OPTIMIZER", "ADAMW"),
        ("SOLVER.WEIGHT_DECAY_NORM", 0.1),
        ("MODEL.ROI_BN.BATCH", "shuffled"),
        ("MODEL.LEVEL_BN.AFFINE", "level"),
        ("DATASETS.TRAIN", ("a",)),
    ],
)
def test_what_cannot_change_is_named_with_both_values(key, value):
    cfg = default_config()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=f"{key} was .*, is ") as error:
        changes(BEFORE, cfg)
    assert "another OUTPUT_DIR" in str(error.value)


def test_other_settings_are_told_or_do_not_matter():
    cfg = default_config()
    assert changes(BEFORE, cfg) == ""
    cfg.merge_from_list(["OUTPUT_DIR", "x", "TEST.EVAL_PERIOD", 5, "MODEL.ROI_BN.TEST_STATS", "y"])
    assert changes(BEFORE, cfg) == ""
    cfg.merge_from_list(["SOLVER.MAX_ITER", 7, "SOLVER.STEPS", (3, 5), "SOLVER.BASE_LR_END", 0.1])
    assert set(changes(BEFORE, cfg).split("; ")) == {
        "SOLVER.BASE_LR_END was 0.0, is 0.1",
        "SOLVER.MAX_ITER was 40000, is 7",
        "SOLVER.STEPS was [30000], is [3, 5]",
    }


def test_a_key_that_only_one_version_of_detectron2_has_does_not_count():
    cfg = default_config()
    cfg.SOLVER.NEW_KEY = 3
    assert changes(BEFORE.replace("SEED:", "OLD_SEED:"), cfg) == ""
