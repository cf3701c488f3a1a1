"""What a network learns, and what its scores mean."""

import numpy as np

from medseg_brn.cases.targets import Region, Targets

REGIONS = (Region("whole", (1, 2), 1), Region("core", (2,), 2))


def test_of_exclusive_classes_the_largest_wins_and_the_lower_of_equals() -> None:
    targets = Targets(("background", "a", "b"))
    scores = np.array([[1, 0, 2], [3, 1, 2], [2, 4, 0]], np.float32)
    assert targets.decide(scores).tolist() == [1, 2, 0]
    assert (targets.num_outputs, targets.structures) == (3, {"a": (1,), "b": (2,)})


def test_of_regions_the_last_above_one_half_is_written() -> None:
    targets = Targets(("background", "edema", "core"), REGIONS)
    whole = [0.5, 0.6, 0.9, 0.1]
    core = [0.5, 0.4, 0.8, 0.7]
    assert targets.decide(np.array([whole, core], np.float32)).tolist() == [0, 1, 2, 2]
    assert (targets.num_outputs, targets.structures) == (2, {"whole": (1, 2), "core": (2,)})


def test_channels_stand_for_classes() -> None:
    assert Targets(("background", "a")).members().tolist() == [[True, False], [False, True]]
    regions = Targets(("background", "edema", "core"), REGIONS, ignore_class=3)
    assert regions.members().tolist() == [[False, True, True, False], [False, False, True, False]]
