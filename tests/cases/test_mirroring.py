"""Left and right: what classes, regions and channels become in a mirror."""

import pytest

from medseg_brn.cases.mirroring import find_mirrored_channels, find_mirrored_classes
from medseg_brn.cases.targets import Region, Targets
from medseg_brn.errors import ConfigError

NAMES = ("background", "left edema", "left core", "right edema", "right core", "stem")
REGIONS = (
    Region("left tumour", (1, 2), 1),
    Region("right tumour", (3, 4), 3),
    Region("left core", (2,), 2),
    Region("right core", (4,), 4),
    Region("stem", (5,), 5),
)
EDEMA, CORE = ("left edema", "right edema"), ("right core", "left core")


def test_paired_classes_change_places_and_others_stay():
    targets = Targets(NAMES, ignore_class=6)
    assert find_mirrored_classes((EDEMA, CORE), targets) == {1: 3, 3: 1, 2: 4, 4: 2}
    assert find_mirrored_channels((EDEMA, CORE), targets) == (0, 3, 4, 1, 2, 5)
    assert find_mirrored_channels((), targets) == (0, 1, 2, 3, 4, 5)


def test_regions_become_those_of_the_swapped_classes():
    targets = Targets(NAMES, REGIONS)
    assert find_mirrored_channels((EDEMA, CORE), targets) == (1, 0, 3, 2, 4)
    assert find_mirrored_channels((), targets) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("find", [find_mirrored_channels, find_mirrored_classes])
def test_a_region_whose_mirror_image_is_none_is_refused(find):
    message = r"region 'left tumour' \(left edema, left core\) its mirror image \(left edema, right core\)"
    with pytest.raises(ConfigError, match=message):
        find((CORE,), Targets(NAMES, REGIONS))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((("left edma", "right edema"),), "'left edma', which is no class.*nearest: left edema"),
        ((EDEMA, ("stem", "left edema")), "names a class twice"),
        ((("stem", "stem"),), "names a class twice"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(pairs, message):
    with pytest.raises(ConfigError, match=message):
        find_mirrored_channels(pairs, Targets(NAMES))
