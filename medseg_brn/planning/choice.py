"""What a rule returns: a value and, with numbers, why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Choice(Generic[Value]):
    """One option's value and the reason for it, in one line."""

    value: Value
    reason: str


Choices = dict[str, Choice[Any]]
"""Dotted option -> choice, such as `patches.size`."""


def nest(choices: Mapping[str, Choice[Any]]) -> dict[str, Any]:
    """The choices' values as an experiment's nested options."""
    options: dict[str, Any] = {}
    for key, choice in choices.items():
        *sections, name = key.split(".")
        place = options
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = choice.value
    return options
