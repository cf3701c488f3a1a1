"""`medseg-brn doctor`: what this machine can do, and what `auto` makes of it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Tell what this machine can do: versions, processor, memory, devices, and the fastest way to compute.

    Convolutions are tried in each number format and memory layout, which takes a second or two; nothing is
    written. To keep it for a report of a problem:

    `medseg-brn doctor --json > machine.json`
    """
    import json

    from rich.console import Console

    from medseg_brn.inference.examination import examine_machine

    facts = examine_machine()
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False))
        return
    trial = facts["trial"]
    console = Console(highlight=False)
    console.print(_table_facts(facts))
    console.print(
        f"\nTrials: a 3×3×3 convolution, {trial['channels']} → {trial['channels']} channels, "
        f"{'×'.join(map(str, trial['tile']))} voxels, one thread"
    )
    console.print(_table_trials(facts), _table_choices(facts), "", _table_extras(facts))


def _table_facts(facts: dict[str, Any]) -> "Table":
    """What the machine is and has, one line or two each."""
    from medseg_brn.cli.tables import table_pairs

    versions, processor, memory = facts["versions"], facts["processor"], facts["memory"]
    temporary = facts["temporary_folder"]
    told = ", ".join(f"{name} {number or 'missing'}" for name, number in versions.items())
    gpus = [
        f"{gpu['name']}, {_gb(gpu['total_bytes'])}, {_gb(gpu['free_bytes'])} free, "
        f"compute capability {gpu['compute_capability']}"
        for gpu in facts["gpus"]
    ]
    instructions = ", ".join(processor["instructions"]) or "none that matter here"
    return table_pairs(
        {
            "Versions": told,
            "System": facts["system"],
            "Processor": f"{processor['name']}, {processor['cores']} cores; instructions: {instructions}",
            "Threads": f"{processor['threads']} (others: infer --threads)",
            "Memory": f"{_gb(memory['total_bytes'])}, {_gb(memory['free_bytes'])} free; infer takes up to "
            f"{_gb(memory['infer_bytes'])} (other amounts: infer --memory 4GB)",
            "Temporary": f"{temporary['path']}, {_gb(temporary['free_bytes'])} free; for what infer's memory "
            "cannot hold (another folder: the environment variable TMPDIR)",
            "CUDA": "\n".join(gpus) or "none",
        }
    )


def _table_trials(facts: dict[str, Any]) -> "Table":
    """One row a trial."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("Device", "Format", "Layout", box=SIMPLE_HEAD)
    table.add_column("ms", justify="right")
    table.add_column("Speed", justify="right")
    for row in facts["trials"]:
        refused = row["milliseconds"] is None
        table.add_row(
            *(row["device"], row["precision"], row["layout"].replace("_", " ")),
            "refused" if refused else f"{row['milliseconds']:.2f}",
            "–" if refused else f"{row['relative_speed']:.2f} ×",
        )
    return table


def _table_choices(facts: dict[str, Any]) -> "Table":
    """What `auto` takes, and why."""
    from medseg_brn.cli.tables import table_pairs

    pairs = {"Auto": f"computes on {facts['auto']['device']}"}
    for choice in facts["auto"]["choices"]:
        layout = choice["layout"].replace("_", " ")
        pairs[f"On {choice['device']}"] = (
            f"{choice['precision']}: {choice['precision_reason']}.\n{layout}: {choice['layout_reason']}."
        )
    return table_pairs(pairs)


def _table_extras(facts: dict[str, Any]) -> "Table":
    """What may be installed besides."""
    from medseg_brn.cli.tables import table_pairs

    pairs = {}
    for extra in facts["extras"]:
        missing = f"missing {', '.join(extra['missing'])}: {extra['install']}"
        pairs[f"Extra {extra['name']}"] = f"{extra['purpose']}; {'present' if extra['present'] else missing}"
    return table_pairs(pairs)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
