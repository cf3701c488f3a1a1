"""Scenes from files."""

from pathlib import Path

from medseg_brn.errors import DataError
from medseg_brn.models.description import Description
from medseg_brn.reports.viewer.scene import NO_NAMES, Scene, make_scene, tell_channel
from medseg_brn.volumes.reading import read_channels, read_volume


def read_scene(
    image: Path, label_map: Path | None = None, description: Description | None = None, channel: int = 0
) -> Scene:
    """What a page shows of a scan.

    Args:
        image: a file, or a folder with a DICOM series.
        label_map: on the same voxels.
        description: of a model, which names the label map's values and says whether the scan is a CT.
        channel: of the image, from 0 on.

    Raises:
        DataError: a file cannot be read, the image has no such channel, the two do not lie on the same
            voxels, or the label map is none.
    """
    channels = read_channels(image)
    if channel >= len(channels):
        raise DataError(
            f"{image} has {len(channels)} channel{'s' * (len(channels) != 1)}, counted from 0, and no "
            f"channel {channel}; choose another --channel."
        )
    modalities = description.modalities if description is not None else ()
    return make_scene(
        channels[channel],
        read_volume(label_map) if label_map is not None else None,
        labels=description.labels if description is not None else NO_NAMES,
        colours=description.colours if description is not None else (),
        is_ct=channel < len(modalities) and modalities[channel] == "ct",
        image_place=image,
        label_place=label_map or "",
        notes=tell_channel(channel, len(channels)),
    )
