"""What a cache in an object store is asked for, and what that costs at given prices."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.table import Table

from pipeline.exits import ConfigError
from pipeline.tables import new_table
from stages.setting_types import nearest

if TYPE_CHECKING:
    from pipeline.plan.durations import ReadRate
    from pipeline.plan.space import Space

# Larger files than this are sent in parts of this size, and two requests more.
PART_BYTES = 5 << 20


@dataclass(frozen=True)
class Prices:
    """In any currency. stored: of a GB for a month; out: of a GB that leaves the store; puts,
    gets: of 1,000 requests that write, or that read.
    """

    stored: float = 0.0
    out: float = 0.0
    puts: float = 0.0
    gets: float = 0.0

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "Prices":
        """Of texts like `stored=0.023`. Raises ConfigError."""
        known, told = [field.name for field in fields(cls)], {}
        for text in texts:
            name, _, number = text.partition("=")
            if name not in known:
                raise ConfigError(f"--price {text}: unknown name {name!r}; {nearest(name, known)}")
            try:
                told[name] = float(number)
            except ValueError:
                raise ConfigError(f"--price {text}: {number!r} is no number.") from None
        return cls(**told)


UNPRICED = Prices()


@dataclass(frozen=True)
class Use:
    """Of a store, for one purpose."""

    purpose: str
    puts: int
    gets: int
    bytes: int
    price: float


def uses(
    space: "Space", rate: "ReadRate", images: int, block_rows: int, prices: Prices
) -> Iterator[Use]:
    """What a build and a run ask of a store. block_rows: images whose rows are read together."""
    whole, missing = space.whole.bytes, space.missing.bytes
    yield Use("kept for a month", 0, 0, whole, prices.stored * whole / 1e9)
    puts = space.missing_metadata.files
    for one in space.arrays:
        if one.missing.files:
            puts += one.missing.files * _requests(one.missing.bytes / one.missing.files)
    yield Use("a build", puts, 0, missing, prices.puts * puts / 1e3)
    gets, out = math.ceil(images / block_rows) * rate.image_arrays, images * rate.image_bytes
    yield Use("an epoch", 0, gets, out, prices.out * out / 1e9 + prices.gets * gets / 1e3)


def _requests(file_bytes: float) -> int:
    """By which a file is written."""
    return 1 if file_bytes <= PART_BYTES else math.ceil(file_bytes / PART_BYTES) + 2


def uses_table(made: Sequence[Use]) -> Table:
    """What is asked of a store, line by line."""
    table = new_table("", "requests that write", "that read", "bytes", "price", has_numbers=True)
    for use in made:
        price = f"{use.price:,.2f}" if use.price else ""
        table.add_row(use.purpose, f"{use.puts:,}", f"{use.gets:,}", decimal(use.bytes), price)
    return table
