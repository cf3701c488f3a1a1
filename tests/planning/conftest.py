"""Fingerprints made by hand: no files, no images."""

from collections.abc import Callable, Sequence

import pytest

from medseg_brn.cases.fingerprint import CaseFacts, ChannelStatistics, Fingerprint

Maker = Callable[..., Fingerprint]


def make_fingerprint(
    spacing_mm: Sequence[Sequence[float]] = ((1, 1, 1),),
    shape: Sequence[int] = (100, 100, 100),
    classes: dict[str, Sequence[int]] | None = None,
    content_shape: Sequence[int] | None = None,
    zero_fraction: float = 0.0,
    channels: Sequence[ChannelStatistics] = (ChannelStatistics(50, 10, 20, 80, 0, 100),),
) -> Fingerprint:
    """One case per voxel size; `classes` gives the voxels of each foreground class in each case."""
    import numpy as np

    foreground = classes or {"organ": [1000] * len(spacing_mm)}
    total = int(np.prod(shape))
    cases = []
    for number, own in enumerate(spacing_mm):
        voxels = [counts[number] for counts in foreground.values()]
        cases.append(
            CaseFacts(
                f"case_{number}",
                None,
                tuple(map(float, own)),
                tuple(shape),
                (total - sum(voxels), *voxels),
                zero_fraction,
                content_shape=None if content_shape is None else tuple(content_shape),
            )
        )
    names = ("background", *foreground)
    counts = np.sum([case.class_voxels for case in cases], axis=0).tolist()
    return Fingerprint(
        num_cases=len(cases),
        spacing_mm=tuple(np.median(np.array(spacing_mm, float), axis=0).tolist()),
        shape=tuple(shape),
        channels=tuple(channels),
        class_voxels=dict(zip(names, counts, strict=True)),
        cases=tuple(cases),
    )


@pytest.fixture(name="make_fingerprint")
def _make_fingerprint() -> Maker:
    return make_fingerprint
