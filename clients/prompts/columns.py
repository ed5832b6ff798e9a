"""The types of the input's own columns, so that every shard writes the same Parquet schema."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from clients.errors import PromptsError

if TYPE_CHECKING:
    import pyarrow as pa

#: JSON kind to Arrow type. "big" is an int that a float cannot hold exactly. "json" holds what Parquet has no plain
#: type for, lists, objects and mixed columns, as text. Whole numbers beyond 64 bits are read as floats, by orjson.
_ARROW = {
    "bool": "bool",
    "int": "int64",
    "big": "int64",
    "float": "float64",
    "text": "string",
    "json": "string",
}

#: A file whose rows have more different column names than this has data where names should be.
MAX_COLUMNS = 512

_EXACT_IN_FLOAT = 1 << 53

#: The kind of a column that has held two kinds, where it is not "json".
_JOINED = {
    frozenset(("int", "big")): "big",
    frozenset(("int", "float")): "float",
}
_KIND_OF_TYPE = {bool: "bool", float: "float", str: "text", list: "json", dict: "json"}


class CarriedColumns:
    """Learns, from every row once, which columns the input carries and of which kind each one is.

    Args:
        kinds: What was learnt elsewhere, `{"name": "text"}`.
    """

    def __init__(self, kinds: Mapping[str, str] | None = None) -> None:
        self.kinds: dict[str, str] = dict(kinds or {})

    def observe(self, carried: Mapping[str, Any]) -> None:
        """Take one row's own columns into account; in which order the rows come makes no difference to the kinds.

        Args:
            carried: The row's own columns by name.

        Raises:
            PromptsError: the rows have too many different columns.
        """
        for name, value in carried.items():
            known, kind = self.kinds.get(name), _kind(value)
            if known is None or known != kind != "":
                self.kinds[name] = kind if not known else _JOINED.get(frozenset((known, kind)), "json")
        if len(self.kinds) > MAX_COLUMNS:
            raise PromptsError(
                f"the rows have more than {MAX_COLUMNS} different columns, such as {list(self.kinds)[-1]!r}. "
                "Put what varies from row to row under one column."
            )

    def fields(self) -> "list[pa.Field]":
        """Arrow fields in order of first appearance; a name that a result column has becomes `input_<name>`."""
        import pyarrow as pa  # late, as below: checking an input needs no Arrow

        return [
            pa.field(
                result_name(name, self.kinds),
                _ARROW[kind or "text"],
                metadata={"json": "true"} if kind == "json" else None,
            )
            for name, kind in self.kinds.items()
        ]

    def arrays(self, rows: Iterable[Mapping[str, Any]]) -> "list[pa.Array]":
        """The columns of some rows, in the order of `fields`; a row without a column has null there.

        Raises:
            PromptsError: a value is not of the kind that was learnt.
        """
        rows = list(rows)
        return [_array(name, kind, [row.get(name) for row in rows]) for name, kind in self.kinds.items()]


def result_name(name: str, others: Mapping[str, Any]) -> str:
    """The name of an input column in the results: its own, unless a result column has that name."""
    from clients.results.schema import COLUMNS

    if name not in COLUMNS.names:
        return name
    renamed = f"input_{name}"
    while renamed in others:
        renamed = f"input_{renamed}"
    return renamed


def _kind(value: Any) -> str:
    """The kind of one value; "" for null, which fits every kind."""
    if value is None:
        return ""
    if type(value) is int:
        if -_EXACT_IN_FLOAT <= value <= _EXACT_IN_FLOAT:
            return "int"
        return "big" if -(1 << 63) <= value < 1 << 63 else "json"
    return _KIND_OF_TYPE[type(value)]


def _array(name: str, kind: str, values: list[Any]) -> "pa.Array":
    import pyarrow as pa

    if kind == "json":
        values = [None if value is None else orjson.dumps(value).decode() for value in values]
    try:
        return pa.array(values, type=_ARROW[kind or "text"])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise PromptsError(
            f"column {name!r} held only {kind or 'null'} values when the input was checked and now holds others: "
            f"the input has changed since. Run the same command again."
        ) from error
