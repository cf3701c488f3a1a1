"""JSON and YAML of other people, as plain values."""

import json
from pathlib import Path
from typing import Any

import yaml

from medseg_brn.errors import ModelError

MOST_BYTES = 1 << 24


def read_plain(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON or YAML file; YAML tags other than those of plain values are refused.

    Raises:
        ModelError: the file is missing, too large, damaged, tagged, or holds no mapping.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes, and {MOST_BYTES:,} are the most")
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else _load_yaml(text)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; check that the folder is whole") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} is refused or damaged, and nothing of it was executed: {reason}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__}, and a mapping is expected")
    return found


def _load_yaml(text: str) -> object:
    # An alias may stand for an alias, so that few bytes become billions of values; a bundle needs none.
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
        raise ValueError("it has YAML aliases (*name), which are not read; write their values out")
    return yaml.safe_load(text)
