"""A table in the terminal."""

from rich.console import Console
from rich.table import Table


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """The first column stands left, all others right."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
