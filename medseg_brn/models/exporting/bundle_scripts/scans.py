"""Which files of a folder make a scan."""

import re
from pathlib import Path
from typing import Any

CHANNEL_NUMBER = re.compile(r"_\d{4}(?=\.nii(\.gz)?$)")


def list_scans(folder: str, channels: int) -> list[dict[str, Any]]:
    """Return the items of a MONAI dataset, `{"image": file or files}`, sorted by name.

    Args:
        folder: with .nii or .nii.gz files: one per scan, with several channels in a fourth axis; or one per
            channel, CASE_0000.nii.gz, CASE_0001.nii.gz and so on.
        channels: of the model.

    Raises:
        ValueError: there are no such files, or not as many of a case as there are channels.
    """
    files = sorted(path for path in Path(folder).glob("*") if path.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise ValueError(f"No .nii or .nii.gz file is in {folder!r}; give the scans' folder as --dataset_dir")
    if channels == 1:
        return [{"image": str(path)} for path in files]
    cases: dict[str, list[str]] = {}
    for path in files:
        cases.setdefault(CHANNEL_NUMBER.sub("", path.name), []).append(str(path))
    for name, own in cases.items():
        if len(own) not in (1, channels):
            raise ValueError(
                f"Case {name} has {len(own)} files, and the model takes {channels} channels: one file with "
                "all of them, or one per channel"
            )
    return [{"image": own[0] if len(own) == 1 else own} for own in cases.values()]
