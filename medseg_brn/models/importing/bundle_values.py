"""The configuration of a MONAI bundle as data: plain values, and references to them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_brn.errors import ModelError

SEPARATOR = re.compile("#|::")
DEEPEST = 50
MOST_VALUES = 100_000


@dataclass
class BundleConfig:
    """A configuration, of which entries are read one by one.

    Attributes:
        content: as JSON or YAML gave it.
        path: of the file, for messages.
    """

    content: Mapping[str, Any]
    path: Path
    _count: int = 0

    def read(self, key: str) -> Any:
        """Return an entry with its references resolved.

        Args:
            key: its place, as in `preprocessing#transforms`.

        Raises:
            ModelError: there is none, or it holds an expression, a macro, or a reference that leads nowhere.
        """
        self._count = 0
        return self._resolve(self._find(key, key), key, 0)

    def read_component(self, key: str) -> tuple[str, dict[str, Any]]:
        """Return what an entry with `_target_` would call, which is not called, and its arguments.

        Raises:
            ModelError: as `read`, or there is no `_target_`.
        """
        return split_component(self.read(key), f"{self.path}: {key}")

    def _find(self, key: str, asked_by: str) -> Any:
        found: Any = self.content
        for part in SEPARATOR.split(key):
            if isinstance(found, Mapping) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                by = f", which {asked_by} refers to" if asked_by != key else ""
                raise ModelError(f"{self.path} has no entry {key!r}{by}")
        return found

    def _resolve(self, value: Any, place: str, depth: int) -> Any:
        self._count += 1
        if depth > DEEPEST or self._count > MOST_VALUES:
            raise ModelError(f"{self.path}: {place} refers to itself, or holds too much")
        if isinstance(value, Mapping):
            return {str(key): self._resolve(one, f"{place}#{key}", depth + 1) for key, one in value.items()}
        if isinstance(value, list):
            return [self._resolve(one, f"{place}#{number}", depth + 1) for number, one in enumerate(value)]
        if not isinstance(value, str):
            return value
        if value.startswith("@"):
            return self._resolve(self._find(value[1:], place), place, depth + 1)
        if value.startswith(("$", "%")):
            kind = "an expression" if value[0] == "$" else "a macro"
            raise ModelError(
                f"{self.path}: {place} is {kind}, {value[:80]!r}, and bundles are read as data: nothing is "
                "evaluated; write the value that it has"
            )
        return value


def split_component(value: Any, place: str) -> tuple[str, dict[str, Any]]:
    """Return `_target_` and the arguments beside it.

    Raises:
        ModelError: there is no `_target_`, or there is another of MONAI's instructions.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        raise ModelError(f"{place} has no _target_ that says what it is")
    arguments = {key: one for key, one in value.items() if key not in ("_target_", "_desc_")}
    instruction = next((key for key in arguments if key.startswith("_")), None)
    if instruction is not None:
        raise ModelError(f"{place}#{instruction} is an instruction to MONAI that is not followed here")
    return value["_target_"], arguments
