"""Where a model lies that is given by path or by name.

A path with a model wins. A name is looked for among the models that come with the package, in its folder
`pretrained`, then in the user's own folder, where `models pull` puts them. In both, a model folder's name is
the model's.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medseg_brn.errors import ModelError

WEIGHTS_NAME = "model.safetensors"
DESCRIPTION_NAME = "model.json"
MEMBERS_NAME = "members"

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}", re.ASCII)
NAME_RULE = "small letters, digits, '.', '_' and '-', the first one a letter or a digit"

FOLDER_VARIABLE = "MEDSEG_BRN_MODELS"


@dataclass(frozen=True)
class NamedModel:
    """A model that has a name here.

    Attributes:
        name: by which commands take it.
        folder: with its `model.json`.
        is_shipped: it came with the package.
    """

    name: str
    folder: Path
    is_shipped: bool


def find_model_folder(model: Path | str) -> Path:
    """Return the folder with the model: a path, the folder `model` inside a run folder, or a known name's.

    Raises:
        ModelError: there is no model of this path or name.
    """
    path = Path(model)
    for folder in (path, path / "model"):
        if (folder / DESCRIPTION_NAME).is_file():
            return folder
    named = {known.name: known for known in list_named_models()}
    if path.exists():
        raise ModelError(_tell_missing(path, hides_name=str(path) in named))
    if str(path) in named:
        return named[str(path)].folder
    if NAME.fullmatch(str(path)):
        raise ModelError(_tell_unknown(str(path), list(named)))
    raise ModelError(f"No model at {path}: it does not exist; give a run folder, a model folder or a name")


def list_named_models() -> tuple[NamedModel, ...]:
    """Return the models with a name: those of the package, then the user's own, each sorted by name."""
    shipped = dict(_list_folder(shipped_folder()))
    # Nobody's file can take the place of a model that came with the package.
    own = {name: folder for name, folder in _list_folder(user_folder()) if name not in shipped}
    return (
        *(NamedModel(name, folder, True) for name, folder in shipped.items()),
        *(NamedModel(name, folder, False) for name, folder in own.items()),
    )


def shipped_folder() -> Path:
    """Return the folder of the models that come with the package."""
    return Path(__file__).parents[1] / "pretrained"


def user_folder() -> Path:
    """Return the folder of the user's own models, which need not exist.

    It is what the environment variable `MEDSEG_BRN_MODELS` says, or the place that the system has for a
    user's data.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "medseg_brn" / "models"


def _list_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the models of a folder; what has no model's name, such as unfinished ones, is passed over."""
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if NAME.fullmatch(entry.name) and (entry / DESCRIPTION_NAME).is_file():
            yield entry.name, entry


def _tell_missing(path: Path, *, hides_name: bool) -> str:
    if (path / "checkpoint").is_dir():
        return f"No model in the run {path} yet; finish it with medseg-brn train … -o {path} --resume"
    hidden = "; it hides the model of this name: rename it, or work in another folder" if hides_name else ""
    return f"No model at {path}: neither {DESCRIPTION_NAME} nor model/{DESCRIPTION_NAME} is in it{hidden}"


def _tell_unknown(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    guess = f"; the nearest is {nearest[0]}" if nearest else ""
    names = ", ".join(known) or "there are none yet"
    return (
        f"No model {name!r}: it is neither a path nor a known name ({names}{guess}); give a run folder or a "
        "model folder, or bring a model with medseg-brn models pull SOURCE"
    )
