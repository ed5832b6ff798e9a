"""The types of the input's own columns, so that every shard writes the same Parquet schema."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import pyarrow as pa

from clients.errors import PromptsError
from clients.results.schema import COLUMNS

#: JSON kind to Arrow type. "json" holds what Parquet has no plain type for, lists, objects and mixed columns, as text.
_ARROW = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string(), "json": pa.string()}

#: A file whose rows have more different column names than this has data where names should be.
MAX_COLUMNS = 512

_EXACT_IN_FLOAT = 1 << 53


class CarriedColumns:
    """Learns, from every row once, which columns the input carries and of which kind each one is.

    Args:
        kinds: What was learnt elsewhere, `{"name": "text"}`.
    """

    def __init__(self, kinds: Mapping[str, str] | None = None) -> None:
        self.kinds: dict[str, str] = dict(kinds or {})

    def observe(self, carried: Mapping[str, Any]) -> None:
        """Take one row's own columns into account."""
        for name, value in carried.items():
            known = self.kinds.get(name, "")
            if known != "json":
                self.kinds[name] = _join(known, value)
        if len(self.kinds) > MAX_COLUMNS:
            raise PromptsError(
                f"the rows have more than {MAX_COLUMNS} different columns, such as {list(self.kinds)[-1]!r}. "
                "Put what varies from row to row under one column."
            )

    def fields(self) -> list[pa.Field]:
        """Arrow fields in order of first appearance; a name that a result column has becomes `input_<name>`."""
        return [
            pa.field(
                result_name(name, self.kinds),
                _ARROW[kind or "text"],
                metadata={"json": "true"} if kind == "json" else None,
            )
            for name, kind in self.kinds.items()
        ]

    def arrays(self, rows: Iterable[Mapping[str, Any]]) -> list[pa.Array]:
        """The columns of some rows, in the order of `fields`; a row without a column has null there."""
        rows = list(rows)
        return [
            pa.array([_stored(row.get(name), kind) for row in rows], type=_ARROW[kind or "text"])
            for name, kind in self.kinds.items()
        ]


def result_name(name: str, others: Mapping[str, Any]) -> str:
    """The name of an input column in the results: its own, unless a result column has that name."""
    if name not in COLUMNS.names:
        return name
    renamed = f"input_{name}"
    while renamed in others:
        renamed = f"input_{renamed}"
    return renamed


def _join(known: str, value: Any) -> str:
    """The kind that holds both what was seen before and this value."""
    if value is None:
        return known
    kind = _kind(value)
    if known in ("", kind):
        return kind
    if {known, kind} == {"int", "float"}:
        return "float" if isinstance(value, float) or abs(value) <= _EXACT_IN_FLOAT else "json"
    return "json"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(1 << 63) <= value < 1 << 63 else "json"
    if isinstance(value, float):
        return "float"
    return "text" if isinstance(value, str) else "json"


def _stored(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "json":
        return orjson.dumps(value).decode()
    return float(value) if kind == "float" else value
