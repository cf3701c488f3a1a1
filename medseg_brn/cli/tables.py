"""Tables of what a command tells."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def table_pairs(pairs: "Mapping[str, str | Text]") -> "Table":
    """Names and what is told of them, which wraps in a column of its own."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=10)
    table.add_column(overflow="fold")
    for name, told in pairs.items():
        table.add_row(Text(name, style="bold"), Text(told) if isinstance(told, str) else told)
    return table


def printable(text: str) -> str:
    """The text without characters by which a file could command the terminal that shows it."""
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
