"""What a plan leaves: an experiment that a person can read, its numbers for programs, and a page.

CONFIG.yaml         every option; above each one that a rule chose, why
CONFIG.plan.json    fingerprint, choices, prediction, what was measured
CONFIG.plan.html    pictures of the dataset and the choices
"""

import json
import os
import shlex
import textwrap
from pathlib import Path
from typing import Any

import yaml

from medseg_brn.errors import ConfigError
from medseg_brn.experiment import parse_experiment
from medseg_brn.planning.planner import Plan
from medseg_brn.planning.prediction import tell_owner
from medseg_brn.reports.page import write_page
from medseg_brn.reports.plan_report import PlanFacts, make_plan_page
from medseg_brn.reports.wording import tell_duration
from medseg_brn.volumes.atomic import write_text_atomic

WIDTH = 110
REASON_COLUMN = 34


def name_outputs(config_path: Path) -> tuple[Path, Path, Path]:
    """The YAML, JSON and HTML file of a plan.

    Raises:
        ConfigError: the name does not end in .yaml or .yml.
    """
    if config_path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{config_path} is no YAML file's name; call it {config_path.name}.yaml")
    return config_path, config_path.with_suffix(".plan.json"), config_path.with_suffix(".plan.html")


def check_outputs(config_path: Path, force: bool) -> None:
    """Find out before any work whether the outputs may and can be written.

    Raises:
        ConfigError: the name is none; its folder is missing or cannot be written to; one of the files is
            there and `force` is false, or is there and is nothing that a plan wrote.
    """
    paths = name_outputs(config_path)
    folder = config_path.parent
    if not folder.is_dir():
        raise ConfigError(f"{folder}, where {config_path.name} is to be written, is no folder; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be written to; name a file in another folder")
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise ConfigError(f"{there[0]} is there already; name another file, or overwrite it by --force")
    for path in there:
        if not path.is_file() or (path.suffix == ".json" and not _is_plan(path)):
            raise ConfigError(
                f"{path} is there already and is no plan's file; name another file than {paths[0]}"
            )


def _is_plan(path: Path) -> bool:
    """Whether a JSON file is what `describe_plan` gives."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and {"prediction", "choices", "fingerprint"} <= described.keys()


def write_plan(plan: Plan, config_path: Path) -> None:
    """Write the three files; the YAML last, so that where it is the others are too.

    Raises:
        ConfigError: the YAML would not be read back as the plan's experiment.
        DataError: a file cannot be written, or a case for the page's pictures cannot be read.
    """
    yaml_path, json_path, html_path = name_outputs(config_path)
    text = dump_plan(plan, yaml_path)
    if parse_experiment(yaml.safe_load(text), str(yaml_path)) != plan.experiment:
        raise ConfigError(f"{yaml_path} would not be read back as it was planned; please report this")
    page = make_plan_page(_make_facts(plan, yaml_path.name, text))
    write_text_atomic(json_path, json.dumps(describe_plan(plan), indent=1) + "\n")
    write_page(page, html_path)
    write_text_atomic(yaml_path, text)


def dump_plan(plan: Plan, path: Path) -> str:
    """The experiment as YAML, each chosen option under the reason for it; `path` is where it will be."""
    lines = [
        *_comment(
            f"{plan.dataset.name}: {plan.fingerprint.num_cases} cases, planned by medseg-brn plan.", ""
        ),
        f"#   medseg-brn train {_printable(shlex.quote(str(path)))} -o RUN",  # on one line, however long
        *_comment(tell_prediction(plan), ""),
        *(line for warning in plan.warnings for line in _comment(f"Warning: {warning}", "")),
        *_comment(
            "A comment behind or above an option tells why it was chosen; options without one are defaults.",
            "",
        ),
        "",
    ]
    options = json.loads(plan.experiment.model_dump_json())
    return "\n".join([*lines, *_dump_section(options, plan, "", "")]) + "\n"


def tell_prediction(plan: Plan) -> str:
    """Time and memory in a sentence."""
    cost = plan.prediction
    how = "measured" if cost.measured else "not measured"
    return (
        f"Predicted ({how}, {cost.machine}): {cost.step_seconds:.3g} s a step, "
        f"{tell_duration(cost.training_seconds)} for {plan.experiment.training.steps} steps, "
        f"{tell_duration(cost.validation_seconds)} for validation, {tell_duration(cost.total_seconds)} in "
        f"all; peak memory {tell_owner(plan.machine.device)} {cost.peak_memory_mb:.0f} MB."
    )


def describe_plan(plan: Plan) -> dict[str, Any]:
    """The plan in plain JSON types."""
    choices = {key: {"value": choice.value, "reason": choice.reason} for key, choice in plan.choices.items()}
    spacing_mm = plan.choices["preprocessing.spacing_mm"].value
    described = {
        "dataset": {"name": plan.dataset.name, "path": plan.experiment.dataset.path},
        "budgets": {"memory_bytes": plan.memory_bytes, "time_seconds": plan.request.time_seconds},
        "machine": plan.machine.as_dict(),
        "prediction": plan.prediction.as_dict(),
        "warnings": plan.warnings,
        "choices": choices,
        "experiment": json.loads(plan.experiment.model_dump_json()),
        "trials": [trial.as_dict() for trial in plan.trials],
        "shapes_at_target_spacing": plan.fingerprint.shapes_at(spacing_mm),
        "fingerprint": plan.fingerprint.as_dict(),
    }
    return json.loads(json.dumps(described))


def _dump_section(options: dict[str, Any], plan: Plan, prefix: str, indent: str) -> list[str]:
    """Lines of a section and those within it; `prefix` is its dotted name and a dot."""
    lines: list[str] = []
    for name, value in options.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and (not prefix or key == "patches.augmentation"):
            lines.append(f"{indent}{name}:")
            lines.extend(_dump_section(value, plan, f"{key}.", f"{indent}  "))
        else:
            reason = plan.choices[key].reason if key in plan.choices else ""
            lines.extend(_explain(f"{indent}{_dump_option(name, value)}", reason, indent))
    return lines


def _explain(line: str, reason: str, indent: str) -> list[str]:
    """An option's line with the reason behind it, or above it where there is no room."""
    if not reason:
        return [line]
    explained = f"{line:<{REASON_COLUMN}}  # {_printable(reason)}"
    return [explained] if len(explained) <= WIDTH else [*_comment(reason, indent), line]


def _dump_option(name: str, value: Any) -> str:
    """`name: value` on one line, in YAML's flow style."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    plain = text.removesuffix("...\n").strip()  # the end of a document, which a bare number has
    return f"{name}: {plain}"


def _comment(text: str, indent: str) -> list[str]:
    """Lines of comment; a dataset's name may hold anything, so no line of it can end the comment."""
    return textwrap.wrap(
        _printable(text),
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}#   ",
        break_on_hyphens=False,
    )


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _make_facts(plan: Plan, name: str, text: str) -> PlanFacts:
    return PlanFacts(
        name=name,
        dataset=plan.dataset,
        fingerprint=plan.fingerprint,
        spacing_mm=plan.choices["preprocessing.spacing_mm"].value,
        patch=plan.experiment.patches.size,
        choices=[(key, choice.value, choice.reason) for key, choice in plan.choices.items()],
        prediction=plan.prediction.as_dict(),
        memory_owner=tell_owner(plan.machine.device),
        told=tell_prediction(plan),
        warnings=plan.warnings,
        config_text=text,
    )
