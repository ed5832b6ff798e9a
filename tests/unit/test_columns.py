from pathlib import Path
from typing import Any

import duckdb
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import PromptsError
from clients.prompts.columns import MAX_COLUMNS, CarriedColumns
from clients.results.schema import COLUMNS

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
)
NAMES = st.one_of(
    st.sampled_from(["row", "id", "input_row", "input_input_row", "content", "Content", "a", "a.b", "", "이름"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6),
)
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=8)


def learnt(rows: list[dict[str, Any]]) -> CarriedColumns:
    columns = CarriedColumns()
    for row in rows:
        columns.observe(row)
    return CarriedColumns(orjson.loads(orjson.dumps(columns.kinds)))  # as it travels to another pod


def stored(rows: list[dict[str, Any]], path: Path) -> pa.Table:
    columns = learnt(rows)
    fields = columns.fields()
    pq.write_table(pa.Table.from_arrays(columns.arrays(rows), schema=pa.schema(fields)), path)
    return pq.read_table(path)


def read_back(table: pa.Table, at: int) -> list[Any]:
    as_json = (field.metadata or {}).get(b"json") == b"true" if (field := table.schema.field(at)) else False
    values = table.column(at).to_pylist()
    return [orjson.loads(value) if as_json and value is not None else value for value in values]


@given(ROWS)
def test_every_carried_value_comes_back_from_parquet(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    table = stored(rows, tmp_path_factory.mktemp("carried") / "rows.parquet")
    for at, name in enumerate(learnt(rows).kinds):
        for value, found in zip([row.get(name) for row in rows], read_back(table, at), strict=True):
            assert found == value
            assert isinstance(found, bool) == isinstance(value, bool)


@given(ROWS)
def test_no_name_stands_twice_and_none_is_a_result_column(rows: list[dict[str, Any]]) -> None:
    names = [field.name for field in learnt(rows).fields()]
    assert len({*names, *COLUMNS.names}) == len(names) + len(COLUMNS.names)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_change_the_kinds(rows: list[dict[str, Any]], random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert learnt(shuffled).kinds == learnt(rows).kinds


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None], pa.string()),
        ([True, None], pa.bool_()),
        ([1, None, -(1 << 63), (1 << 63) - 1], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([1 << 53, 2.5], pa.float64()),
        (["a", None], pa.string()),
    ],
)
def test_a_plain_column_has_its_plain_type(values: list[Any], kind: pa.DataType) -> None:
    field = learnt([{"x": value} for value in values]).fields()[0]
    assert field.type == kind
    assert field.metadata is None


@pytest.mark.parametrize(
    "values",
    [[1, "a"], [True, 1], [True, 1.5], [[1]], [{"a": 1}], [1 << 63], [(1 << 53) + 1, 0.5], [0.5, (1 << 53) + 1]],
)
def test_what_no_plain_type_holds_is_kept_as_json(values: list[Any]) -> None:
    field = learnt([{"x": value} for value in values]).fields()[0]
    assert (field.type, field.metadata) == (pa.string(), {b"json": b"true"})


def test_a_number_beyond_64_bits_is_kept_as_the_float_it_is_read_as(tmp_path: Path) -> None:
    rows = [orjson.loads(b'{"x": 123456789012345678901234567890}')]
    assert stored(rows, tmp_path / "x.parquet")["x"].to_pylist() == [1.2345678901234568e29]


def test_names_that_result_columns_have_are_kept_under_another(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [{"row": 1, "input_row": 2, "id": 2.5, "content": "a", "Content": "b", "": 5, "a.b": 6}]
    table = stored(rows, path)
    assert table.to_pylist() == [
        {"input_input_row": 1, "input_row": 2, "input_id": 2.5, "input_content": "a", "Content": "b", "": 5, "a.b": 6}
    ]
    assert len(pd.read_parquet(path).columns) == 7
    assert duckdb.read_parquet(str(path)).fetchall() == [(1, 2, 2.5, "a", "b", 5, 6)]


def test_a_file_with_data_in_place_of_names_is_refused() -> None:
    columns = CarriedColumns()
    columns.observe({str(number): 1 for number in range(MAX_COLUMNS)})
    with pytest.raises(PromptsError, match=f"more than {MAX_COLUMNS} different columns, such as 'one more'"):
        columns.observe({"one more": 1})


@pytest.mark.parametrize(("kind", "value"), [("int", "a"), ("text", 5), ("bool", 1), ("float", "x"), ("int", 1 << 64)])
def test_a_value_of_another_kind_than_was_learnt_means_the_input_has_changed(kind: str, value: Any) -> None:
    with pytest.raises(PromptsError, match="the input has changed"):
        CarriedColumns({"x": kind}).arrays([{"x": value}])


def test_a_row_without_a_column_has_null_there() -> None:
    columns = CarriedColumns({"x": "int", "y": "json", "z": ""})
    assert [array.to_pylist() for array in columns.arrays([{}, {"x": 1, "y": [1]}])] == [
        [None, 1],
        [None, "[1]"],
        [None, None],
    ]
