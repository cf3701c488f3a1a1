"""What `medseg-brn models show` prints: a model's card, its figures and its inside."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from medseg_brn.cli.tables import printable, table_pairs
from medseg_brn.config import NetworkConfig
from medseg_brn.models.card import NORMALIZATION_REASONS, Card, TrainingData
from medseg_brn.models.description import Description, EnsembleDescription, ModelDescription, read_description
from medseg_brn.models.names import DESCRIPTION_NAME, MEMBERS_NAME
from medseg_brn.models.quality import Quality, read_quality
from medseg_brn.reports.wording import times

if TYPE_CHECKING:
    from medseg_brn.cases.preprocessing import Preprocessing


def compose_card(description: ModelDescription | EnsembleDescription, folder: Path) -> list[RenderableType]:
    """What is told of a model, to be printed one below the other.

    Args:
        description: of the model or ensemble.
        folder: where it is; of an ensemble, the members' descriptions are read there.

    Raises:
        ModelError: the description of a member is missing or damaged.
    """
    members = _read_members(description, folder)
    card = description.card
    title = Text(printable(description.name), style="bold")
    summary = [Text(printable(card.summary))] if card is not None else []
    pairs = dict(_tell(description, members, folder))
    shown: list[RenderableType] = [title, *summary, Text(), table_pairs(pairs)]
    quality = read_quality(description.training)
    if quality is not None:
        shown += [Text(), *_show_quality(quality)]
    if card is not None and card.limits:
        shown += [Text(), Text("Limits", style="bold")]
        shown += [Text(printable(f"- {limit}")) for limit in card.limits]
    return shown


def _read_members(
    description: ModelDescription | EnsembleDescription, folder: Path
) -> list[ModelDescription]:
    """The descriptions of the networks: its own, or those of an ensemble's members."""
    if isinstance(description, ModelDescription):
        return [description]
    places = [folder / MEMBERS_NAME / member.folder / DESCRIPTION_NAME for member in description.members]
    found = [read_description(place) for place in places]
    return [member for member in found if isinstance(member, ModelDescription)]


def _tell(
    description: Description, members: Sequence[ModelDescription], folder: Path
) -> Iterator[tuple[str, str | Text]]:
    card = description.card
    yield "Segments", _tell_structures(description)
    yield "Scans", printable(_tell_scans(description))
    if members:
        yield "Network", _tell_network(description, members)
        yield "Norm", printable(_tell_norm(card, members))
        yield "Input", "\n".join(dict.fromkeys(_tell_input(member.preprocessing) for member in members))
    yield "Trained on", printable("\n".join(_tell_training(card, members))) or "not told"
    yield "Licence", printable(description.licence or "not told: ask whoever made it")
    if card is not None and card.citation:
        yield "Cite", printable(card.citation)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield "Files", f"{folder}, {size / 1e6:.1f} MB"
    yield "SHA-256", "\n".join(printable(member.weights_sha256) for member in members) or "none"


def _tell_structures(description: Description) -> Text:
    """Each class with its value and, where it has one, its colour; then regions of several classes."""
    told = Text()
    colours = description.colours or (None,) * (description.num_classes - 1)
    classes = zip(description.class_names[1:], description.label_values[1:], colours, strict=True)
    for number, (name, value, colour) in enumerate(classes):
        told.append(", " if number else "")
        told.append("■ " if colour else "", style=colour or "")
        told.append(printable(f"{name} ({value})"))
    if description.regions:
        regions = (
            f"{region.name} ({', '.join(map(str, region.label_values))})" for region in description.regions
        )
        told.append(printable(f"\nas regions: {', '.join(regions)}"))
    return told


def _tell_scans(description: Description) -> str:
    channels = f"{description.in_channels} channel{'s' * (description.in_channels != 1)}"
    told = [f"{channels}: {', '.join(modality.upper() for modality in description.modalities)}"]
    expected = description.card and description.card.expected_scans
    if expected:
        told += [text for text in (expected.body_part, expected.acquisition) if text]
        if expected.spacing_mm is not None:
            told.append(f"voxel edges of {expected.spacing_mm[0]:g} to {expected.spacing_mm[1]:g} mm")
    return "; ".join(told)


def _tell_network(description: Description, members: Sequence[ModelDescription]) -> str:
    networks = dict.fromkeys(
        f"U-Net of {len(network.channels)} levels with {', '.join(map(str, network.channels))} "
        f"channels, {network.encoder} encoder, norm {network.norm}"
        if isinstance(network, NetworkConfig)
        else f"{network.name} of MONAI"
        for network in (member.network for member in members)
    )
    ensemble = isinstance(description, EnsembleDescription)
    head = f"ensemble of {len(members)}, whose probabilities are averaged\n" if ensemble else ""
    return head + "\n".join(networks)


def _tell_norm(card: Card | None, members: Sequence[ModelDescription]) -> str:
    if card is not None and card.normalization:
        return card.normalization
    return "\n".join(
        dict.fromkeys(
            NORMALIZATION_REASONS[network.norm]
            if isinstance(network, NetworkConfig)
            else f"as {network.name} has it"
            for network in (member.network for member in members)
        )
    )


def _tell_input(preprocessing: "Preprocessing") -> str:
    schemes = ", ".join(one.scheme for one in preprocessing.intensity)
    voxels = times(preprocessing.spacing_mm)
    axes = "" if preprocessing.orientation == "RAS" else f", axes {preprocessing.orientation}"
    return f"resampled to voxels of {voxels} mm, crop {preprocessing.crop}, intensities {schemes}{axes}"


def _tell_training(card: Card | None, members: Sequence[ModelDescription]) -> Iterator[str]:
    """The card's datasets; without a card, what the training runs noted."""
    if card is not None and card.training_data:
        yield from map(_tell_data, card.training_data)
        return
    for training in (member.training for member in members):
        if "dataset" in training:
            yield f"{training['dataset']}, {training.get('training_cases', '?')} cases"


def _tell_data(data: TrainingData) -> str:
    told = [data.name, f"{data.cases} cases" if data.cases else "", data.licence or "", data.source or ""]
    attribution = f"\n{data.attribution}" if data.attribution else ""
    return ", ".join(filter(None, told)) + attribution


def _show_quality(quality: Quality) -> list[RenderableType]:
    table = Table("", "Dice", "SD", "95 % interval", "Cases", box=SIMPLE_HEAD, padding=(0, 1))
    for column in table.columns[1:]:
        column.justify = "right"
    for one in quality.classes:
        table.add_row(
            Text(printable(one.name)),
            *(_number(one.dice_mean), _number(one.dice_sd), _interval(one.dice_interval_95), str(one.cases)),
        )
    table.add_row(
        "mean", _number(quality.dice_mean), "", _interval(quality.dice_interval_95), str(quality.cases)
    )
    heading = Text.assemble(("Dice", "bold"), f" {quality.measured_on}")
    return [heading, table, *([Text(printable(quality.meaning))] if quality.meaning else [])]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
