"""Which prediction belongs to which reference, and what is evaluated."""

from dataclasses import dataclass
from pathlib import Path

from medseg_brn.cases.description import read_json
from medseg_brn.cases.label_description import Structures, parse_labels
from medseg_brn.cases.manifest import is_manifest, list_manifest
from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import PROBABILITIES_ENDING, VOLUME_SUFFIXES, is_volume_path, volume_stem


@dataclass(frozen=True)
class Pair:
    """The two label maps of one case."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class Pairing:
    """Pairs by case name, and what is left over on either side."""

    pairs: tuple[Pair, ...]
    without_reference: tuple[str, ...]
    without_prediction: tuple[str, ...]


def pair_label_maps(predictions: Path, references: Path) -> Pairing:
    """Pairs label maps by file name without suffixes: `p/a.nii.gz` goes with `r/a.nrrd`.

    Two files pair whatever their names are. The label maps of a CSV manifest have the name of their case.

    Args:
        predictions: folder of label maps, or one label map.
        references: the same, or a CSV manifest.

    Raises:
        DataError: a path does not exist or holds no label map, a case occurs twice in a folder, or
            no prediction has a reference.
    """
    listed = is_manifest(references)
    predicted = find_label_maps(predictions)
    referenced = _list_label_maps(references) if listed else find_label_maps(references)
    if predictions.is_file() and references.is_file() and not listed:
        return Pairing((Pair(volume_stem(predictions), predictions, references),), (), ())
    names = [name for name in predicted if name in referenced]
    if not names:
        raise DataError(
            f"No prediction in {predictions} ({_tell_names(list(predicted))}) has a reference "
            f"in {references} ({_tell_names(list(referenced))}); give both files of a case the same name "
            "(in a manifest, that of the case)."
        )
    return Pairing(
        pairs=tuple(Pair(name, predicted[name], referenced[name]) for name in names),
        without_reference=tuple(name for name in predicted if name not in referenced),
        without_prediction=tuple(name for name in referenced if name not in predicted),
    )


def find_label_maps(path: Path) -> dict[str, Path]:
    """Case name -> file, sorted by name, of one file or of the label maps in a folder (not below it).

    Hidden files are passed over (archives packed on macOS carry a `._name` beside each file), and so are the
    class probabilities that `infer` writes beside its label maps.

    Raises:
        DataError: the path does not exist, holds no label map, or holds two for one case.
    """
    if path.is_file():
        return {volume_stem(path): path}
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give a folder of label maps, or one label map.")
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if not file.is_file() or not is_volume_path(file) or file.name.lower().endswith(PROBABILITIES_ENDING):
            continue
        name = volume_stem(file)
        if name in found:
            raise DataError(
                f"Case {name!r} has two label maps in {path}: {found[name].name} and {file.name}; remove one."
            )
        found[name] = file
    if not found:
        raise DataError(
            f"{path} holds no label map ({', '.join(VOLUME_SUFFIXES)}); give the folder that holds them, "
            "such as labelsTr of a dataset."
        )
    return found


def _list_label_maps(manifest: Path) -> dict[str, Path]:
    """Case name -> label map of the cases of a manifest that have one."""
    found: dict[str, Path] = {}
    for case in list_manifest(manifest).cases:
        if case.name in found:
            raise DataError(f"{manifest} lists case {case.name!r} twice; give each case a name of its own.")
        if case.label_path is not None:
            found[case.name] = case.label_path
    if not found:
        raise DataError(f"{manifest} lists no label map; add a column 'label' with their paths.")
    return found


def read_structures(path: Path) -> Structures:
    """What a `dataset.json` (Decathlon or nnU-Net) describes: its regions, or its classes without background.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        DataError: the file is missing, is not JSON, or does not describe its labels.
    """
    file = path / "dataset.json" if path.is_dir() else path
    content = read_json(file)
    return parse_labels(content.get("labels"), str(file), content.get("regions_class_order")).structures


def find_description(references: Path) -> Path | None:
    """The `dataset.json` in or beside the reference folder, or the JSON of a manifest's name, if any."""
    if is_manifest(references):
        described = references.with_suffix(".json")
        return described if described.is_file() else None
    folder = references if references.is_dir() else references.parent
    beside = (folder / "dataset.json", folder.resolve().parent / "dataset.json")
    return next((file for file in beside if file.is_file()), None)


def _tell_names(names: list[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
