"""Experiment files: YAML ↔ the typed `Experiment`, with errors that name the file, the key and the remedy."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from medseg_brn.config import Experiment, InferenceConfig
from medseg_brn.errors import ConfigError

COMPARISON_PREFIX = "compare_"
PHANTOM_PATHS = ("phantom_mri", "phantom_ct")


def load_experiment(source: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Experiment read from a YAML file, or from a shipped one by its name, with overrides applied.

    Args:
        source: path of a YAML file, or the name of a shipped experiment such as `hippocampus_mri`.
        overrides: `key=value` pairs; the key is dotted (`training.steps=500`), the value is YAML.

    Raises:
        ConfigError: no such file or name, not YAML, an unknown key, or a value against its rule.
    """
    path = find_config(source)
    options = read_yaml(path)
    if "norms" in options:
        raise ConfigError(f"{path} is a comparison of several runs; use medseg-brn compare {source} -o DIR")
    for override in overrides:
        apply_override(options, override)
    return parse_experiment(options, str(path))


def parse_experiment(options: dict[str, Any], place: str) -> Experiment:
    """Experiment from plain options; `place` is named in errors."""
    try:
        experiment = Experiment.model_validate(options)
    except ValidationError as error:
        raise ConfigError(explain_errors(error, place, Experiment)) from None
    dataset = experiment.dataset
    if dataset.path not in PHANTOM_PATHS:
        absolute = str(Path(dataset.path).expanduser().absolute())
        experiment = experiment.model_copy(update={"dataset": dataset.model_copy(update={"path": absolute})})
    return experiment


def override_inference(settings: InferenceConfig, overrides: Sequence[str]) -> InferenceConfig:
    """A model's inference settings with overrides applied; keys as in an experiment's `inference` section.

    Args:
        settings: the model's own.
        overrides: `key=value` pairs such as `postprocessing.liver.keep_largest=true`.

    Raises:
        ConfigError: an unknown key, or a value against its rule.
    """
    options: dict[str, Any] = {"inference": json.loads(settings.model_dump_json())}
    for override in overrides:
        apply_override(options["inference"], override)
    return parse_experiment(options, "inference settings").inference


def find_config(source: str | Path) -> Path:
    """Path of the YAML file that `source` names: a file, or a shipped experiment or comparison."""
    path = Path(source)
    if path.is_file():
        return path
    shipped = {config.stem: config for config in (*shipped_configs(), *shipped_comparisons())}
    if str(source) in shipped:
        return shipped[str(source)]
    nearest = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(
        f"No experiment {str(source)!r}: it is neither a file nor a shipped experiment"
        f" ({', '.join(sorted(shipped))}){hint}"
    )


def shipped_configs() -> list[Path]:
    """Experiments that come with the package: `configs/` beside it in a checkout, inside it in a wheel."""
    return [path for path in _shipped_files() if not path.stem.startswith(COMPARISON_PREFIX)]


def shipped_comparisons() -> list[Path]:
    """Comparisons that come with the package, `configs/compare_*.yaml`."""
    return [path for path in _shipped_files() if path.stem.startswith(COMPARISON_PREFIX)]


def _shipped_files() -> list[Path]:
    package = Path(__file__).parent
    installed = package / "configs"
    folder = installed if installed.is_dir() else package.parent / "configs"
    return sorted(folder.glob("*.yaml"))


def dump_experiment(experiment: BaseModel) -> str:
    """YAML text with every option of an experiment (or a comparison) and its value."""
    options = json.loads(experiment.model_dump_json())
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True, default_flow_style=None)


def experiment_schema() -> str:
    """JSON schema of experiment files, for editors that complete and check YAML."""
    return json.dumps(Experiment.model_json_schema(), indent=2)


def read_yaml(path: Path) -> dict[str, Any]:
    """Options of a plain YAML file; none where it is empty.

    Raises:
        ConfigError: not YAML, or no mapping.
    """
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path} is not a plain YAML file: {detail}") from None
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ConfigError(f"{path} holds a {type(options).__name__}; an experiment is a mapping of sections")
    return options


def apply_override(options: dict[str, Any], override: str) -> None:
    """Set what `key=value` says; the key is dotted, the value is YAML.

    Raises:
        ConfigError: not of that form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"Override {override!r} is not of the form key=value, such as training.steps=500")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"Override {override!r}: {text!r} is not a YAML value; quote it") from None
    *sections, name = key.strip().split(".")
    target = options
    for section in sections:
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            inner = target[section] = {}
        target = inner
    target[name] = value


def explain_errors(error: ValidationError, place: str, model: type[BaseModel]) -> str:
    """One message for all that is wrong with options of `model`: key, rule, value, nearest valid key."""
    lines = []
    for problem in error.errors():
        location = [part for part in problem["loc"] if not str(part).startswith("function-")]
        key = ".".join(map(str, location))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}{_nearest_key(location, model)}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            got = f"{key}: {message} (got {_short(problem.get('input'))})"
            lines.append(got if key else message)
    return f"{place}: " + "; ".join(dict.fromkeys(lines))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest_key(location: Sequence[str | int], model: type[BaseModel]) -> str:
    valid = _keys_at(location[:-1], model)
    wrong = str(location[-1])
    nearest = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    elsewhere = [name for name, section in _sections(model).items() if wrong in section.model_fields]
    if elsewhere:
        return f"; it belongs to section {elsewhere[0]!r}"
    return f"; valid keys here: {', '.join(valid)}"


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    fields = model.model_fields
    return {
        name: kind
        for name, field in fields.items()
        if isinstance(kind := field.annotation, type) and issubclass(kind, BaseModel)
    }


def _keys_at(sections: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    for section in sections:
        field = model.model_fields.get(str(section))
        if field is None:
            break
        inner = _model_of(field.annotation)
        if inner is None:
            break
        model = inner
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The section inside an annotation such as `AugmentationConfig | None`."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
