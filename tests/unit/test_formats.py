"""Real files of every format: the same rows come out of each, and parts of each make the whole."""

import csv
import datetime as dt
import decimal
import gzip
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import PromptsError
from clients.prompts import check, csv_rows, parquet_rows
from clients.prompts.check import check_prompts
from clients.prompts.lines import Line, Range, read_lines
from clients.prompts.rows import JobDefaults, parse_row
from clients.records import ChatRequest, InvalidRow

Rows = list[dict[str, Any]]
DEFAULTS = JobDefaults(model="m")
BOM = b"\xef\xbb\xbf"

#: What is hard in a table of text, and what is not.
CELL = st.one_of(
    st.sampled_from(['"', ",", "\t", "\n", "\r\n", " a ", "한국어", "5", "null", "true", "[1]", "\u2028", "'", "\\"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.fixed_dictionaries(dict.fromkeys(("prompt", "이름", "a b", "note")[:width], CELL)),
        min_size=1,
        max_size=9,
    )
)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


def as_jsonl(rows: Rows) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def as_csv(rows: Rows, **how: Any) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(rows[0]), **how)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def as_parquet(rows: Rows, row_group_size: int = 3) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=row_group_size)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "rows.jsonl": as_jsonl,
    "rows.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows), mtime=0),
    "packed": lambda rows: zstd(as_jsonl(rows)),
    "rows.csv": as_csv,
    "with mark.CSV": lambda rows: BOM + as_csv(rows, lineterminator="\r\n", quoting=csv.QUOTE_ALL),
    "rows.csv.gz": lambda rows: gzip.compress(as_csv(rows), mtime=0),
    "rows.csv.zst": lambda rows: zstd(as_csv(rows)),
    "rows.tsv": lambda rows: as_csv(rows, delimiter="\t"),
    "rows.parquet": as_parquet,
    "rows": as_parquet,
}


def kept(folder: Path, data: bytes, name: str) -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def fields(lines: list[Line]) -> list[Any]:
    return [orjson.loads(line.data or b"null") for line in lines]


def read(folder: Path, data: bytes, name: str) -> list[Any]:
    return fields(list(read_lines(kept(folder, data, name))))


def complaint(location: str) -> str:
    with pytest.raises(PromptsError) as caught:
        list(read_lines(location))
    text = str(caught.value)
    assert "\n" not in text
    assert location in text
    return text


def bad_rows(folder: Path, data: bytes, name: str = "rows.csv") -> list[InvalidRow]:
    parsed = [parse_row(line, DEFAULTS).request for line in read_lines(kept(folder, data, name))]
    return [request for request in parsed if isinstance(request, InvalidRow)]


@pytest.mark.parametrize("name", WRITERS)
@given(rows=TABLES)
@settings(max_examples=60)
def test_a_table_of_texts_is_the_same_rows_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, name: str, rows: Rows
) -> None:
    assert read(tmp_path_factory.mktemp("formats"), WRITERS[name](rows), name) == rows


@pytest.mark.parametrize("name", WRITERS)
@given(rows=TABLES, shards=st.integers(1, 12))
@settings(max_examples=40)
def test_parts_of_any_number_make_the_whole(
    tmp_path_factory: pytest.TempPathFactory, name: str, rows: Rows, shards: int
) -> None:
    rows = [{**row, "prompt": row["prompt"] + "x"} for row in rows]
    location = kept(tmp_path_factory.mktemp("parts"), WRITERS[name](rows), name)
    checked = check_prompts(location, DEFAULTS)
    parts = checked.cut(shards)
    by_part = [list(read_lines(location, part)) for part, _ in parts]
    assert [line for lines in by_part for line in lines] == list(read_lines(location))
    assert [len(lines) for lines in by_part] == [count for _, count in parts]
    assert sum(map(len, by_part)) == len(rows) == checked.rows


@pytest.mark.parametrize("name", WRITERS)
def test_parts_make_the_whole_when_few_places_to_cut_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(check, "_MAX_MARKS", 8)
    monkeypatch.setattr(parquet_rows, "_BATCH_ROWS", 5)
    rows = [{"prompt": f"row\n{at}" + "가" * at} for at in range(100)]
    location = kept(tmp_path, WRITERS[name](rows), name)
    for shards in (1, 2, 3, 7, 50):
        parts = check_prompts(location, DEFAULTS).cut(shards)
        lines = [line for part, _ in parts for line in read_lines(location, part)]
        assert fields(lines) == rows
        assert [line.row for line in lines] == list(range(100))


@given(st.binary(max_size=120) | st.text('a,"\n\r', max_size=60).map(str.encode))
def test_any_file_named_csv_is_read_or_refused_with_a_sentence_and_can_be_cut_at_every_row(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    location = kept(tmp_path_factory.mktemp("any"), b"a,b\n" + data, "rows.csv")
    try:
        lines = list(read_lines(location))
    except PromptsError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert [line.row for line in lines] == list(range(len(lines)))
    for line in lines:
        assert parse_row(line, DEFAULTS).request.row == line.row
        rest = Range(start=line.start, first_row=line.row, first_line=line.number)
        assert list(read_lines(location, rest)) == lines[line.row :]


@pytest.mark.parametrize("name", WRITERS)
def test_an_address_is_read_as_a_path_is(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": f"row {at}"} for at in range(20)]
    location = Path(kept(tmp_path, WRITERS[name](rows), name)).as_uri()
    parts = check_prompts(location, DEFAULTS).cut(3)
    assert fields([line for part, _ in parts for line in read_lines(location, part)]) == rows


class TestCsv:
    """What people's tables of text are like."""

    def test_the_example_is_read(self) -> None:
        example = Path(__file__).resolve().parents[2] / "examples/reviews.csv"
        found = fields(list(read_lines(str(example))))
        assert [row["id"] for row in found] == ["r-1", "r-2", "r-3", "r-4"]
        assert found[1]["text"] == '배송은 빨랐는데 "한글" 각인이 없어요.'
        assert "\n" in found[2]["text"]

    def test_line_numbers_are_those_of_an_editor(self, tmp_path: Path) -> None:
        data = b'a,b\r\n"one\r\ntwo",x\r\n\r\n3,4\r\n'
        lines = list(read_lines(kept(tmp_path, data, "rows.csv")))
        assert [(line.row, line.number, data[line.start :][:4]) for line in lines] == [
            (0, 2, b'"one'),
            (1, 5, b"3,4\r"),
        ]

    def test_a_field_of_the_request_is_json_where_it_is_no_text(self, tmp_path: Path) -> None:
        row = {
            "prompt": "5", "temperature": "0.5", "max_tokens": "64.0", "seed": "7", "stop": '["a"]', "model": "8",
            "response_format": '{"type":"json_object"}', "logprobs": "True", "tool_choice": "auto", "score": "1.0",
        }  # fmt: skip
        (found,) = read(tmp_path, as_csv([row]), "rows.csv")
        assert found == {
            "prompt": "5", "temperature": 0.5, "max_tokens": 64, "seed": 7, "stop": ["a"], "model": "8",
            "response_format": {"type": "json_object"}, "logprobs": True, "tool_choice": "auto", "score": "1.0",
        }  # fmt: skip
        (found,) = read(tmp_path, as_csv([{"prompt": "a", "stop": "5", "max_tokens": "many"}]), "rows.csv")
        assert found == {"prompt": "a", "stop": "5", "max_tokens": "many"}

    def test_a_conversation_may_stand_in_a_cell(self, tmp_path: Path) -> None:
        messages = [{"role": "user", "content": 'say "hi"'}]
        data = as_csv([{"custom_id": "a", "messages": orjson.dumps(messages).decode()}])
        (line,) = read_lines(kept(tmp_path, data, "rows.csv"))
        request = parse_row(line, DEFAULTS).request
        assert isinstance(request, ChatRequest)
        assert (request.id, request.body["messages"]) == ("a", messages)

    def test_an_empty_cell_is_nothing(self, tmp_path: Path) -> None:
        data = b"prompt,messages,max_tokens,custom_id,topic\nHello,,,,\n"
        (line,) = read_lines(kept(tmp_path, data, "rows.csv"))
        row = parse_row(line, JobDefaults(model="m", request_defaults={"max_tokens": 9}))
        assert isinstance(row.request, ChatRequest)
        assert row.request.body["max_tokens"] == 9
        assert (row.request.id, row.carried) == ("row-0", {"topic": None})

    def test_an_empty_cell_of_a_single_column_is_a_row_and_an_empty_line_is_none(self, tmp_path: Path) -> None:
        assert read(tmp_path, b'text\n""\n\nb\n', "rows.csv") == [{"text": None}, {"text": "b"}]

    @pytest.mark.parametrize(
        ("line", "code", "words"),
        [
            (b"a,b,c", "wrong_cells", "line 3: 3 cells where the header has 2; quote a cell that holds ','"),
            (b"a", "wrong_cells", "1 cells where the header has 2"),
            (b'"a"x,b', "not_csv", "line 3: not valid CSV: "),
            (b"a\rb,c", "not_csv", "not valid CSV: new-line"),
            ("안녕,b".encode("cp949"), "not_utf8", "line 3: not UTF-8; save the file as UTF-8"),
        ],
    )
    def test_a_record_that_is_none_is_a_bad_row_with_its_line(
        self, tmp_path: Path, line: bytes, code: str, words: str
    ) -> None:
        (bad,) = bad_rows(tmp_path, b"prompt,x\n1,2\n" + line + b"\n3,4\n")
        assert (bad.row, bad.error_code) == (1, code)
        assert words in bad.error_message

    def test_a_quote_that_is_never_closed_is_a_bad_row(self, tmp_path: Path) -> None:
        (bad,) = bad_rows(tmp_path, b'prompt,x\n1,2\n"3,4\n5,6\n')
        assert (bad.row, bad.error_code) == (1, "not_csv")

    def test_what_is_too_long_is_a_bad_row_and_reading_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(csv_rows, "MAX_LINE_BYTES", 64)
        rows = [b"a" * 64 + b",b", b"1,2", b"5,6", b'"' + b"x\n" * 40]
        data = b"prompt,x\n" + b"\n".join(rows) + b"\n"
        lines = list(read_lines(kept(tmp_path, data, "rows.csv")))
        bad = bad_rows(tmp_path, data)
        assert [row.error_code for row in bad][:2] == ["too_long", "too_long"]
        assert [row.row for row in bad][:2] == [0, 3]
        assert [orjson.loads(line.data or b"") for line in lines[1:3]] == [
            {"prompt": "1", "x": "2"},
            {"prompt": "5", "x": "6"},
        ]

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "is empty"),
            (b"\n\n", "has no header"),
            (b",,\n1,2,3\n", "has no header"),
            (b"a,b\n", "has a header and no row"),
            (b"a,a\n1,2\n", "has two columns named 'a'"),
            ("가,b\n1,2\n".encode("cp949"), "is not UTF-8: its header holds other bytes"),
            (b'"a"b,c\n1,2\n', "has no header that can be read"),
            ("a,b\n1,2\n".encode("utf-16"), "is UTF-16"),
            ("a,b\n1,2\n".encode("utf-16-le"), "is not UTF-8: its header holds other bytes"),
        ],
    )
    def test_a_file_without_a_usable_header_is_refused(self, tmp_path: Path, data: bytes, words: str) -> None:
        assert words in complaint(kept(tmp_path, data, "rows.csv"))

    def test_a_column_without_a_name_is_called_by_its_place(self, tmp_path: Path) -> None:
        assert read(tmp_path, b",text\n0,a\n", "rows.csv") == [{"column_1": "0", "text": "a"}]

    @pytest.mark.parametrize("name", ["s3://bucket/a.csv?region=x", "A.CSV.GZ", "a.csv/", "b/a.tsv.zst", "a.csv.zstd"])
    def test_a_table_is_known_by_its_name(self, name: str) -> None:
        from clients.prompts.lines import _delimiter

        assert _delimiter(name) == ("\t" if "tsv" in name else ",")
        assert _delimiter("a.csv.jsonl") == _delimiter("csv") == ""


class TestParquet:
    """Types that JSON does not know, and files that are large or broken."""

    def test_what_json_does_not_know_becomes_text(self, tmp_path: Path) -> None:
        nested = pa.struct([("x", pa.int64()), ("at", pa.list_(pa.timestamp("ns", "UTC")))])
        when = dt.datetime(2024, 5, 1, 12, 30, tzinfo=dt.UTC)
        table = pa.table({
            "at": pa.array([when], pa.timestamp("ns", "Asia/Seoul")),
            "plain": pa.array([when.replace(tzinfo=None)], pa.timestamp("ms")),
            "day": pa.array([when.date()]),
            "clock": pa.array([dt.time(1, 2, 3)], pa.time64("ns")),
            "took": pa.array([dt.timedelta(hours=2)], pa.duration("s")),
            "price": pa.array([decimal.Decimal("1.50")]),
            "text": pa.array(["한글".encode()], pa.binary()),
            "bytes": pa.array([b"\xff\x00"], pa.binary()),
            "tags": pa.array([["a", None]]),
            "nested": pa.array([{"x": 1, "at": [when]}], nested),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "kind": pa.array(["a"]).dictionary_encode(),
            "nothing": pa.array([None], pa.string()),
            "nan": pa.array([float("nan")]),
        })  # fmt: skip
        sink = io.BytesIO()
        pq.write_table(table, sink)
        (found,) = read(tmp_path, sink.getvalue(), "rows.parquet")
        assert found == {
            "at": "2024-05-01 12:30:00.000000000+0000",
            "plain": "2024-05-01 12:30:00.000",
            "day": "2024-05-01",
            "clock": "01:02:03.000000000",
            "took": "2:00:00",
            "price": "1.50",
            "text": "한글",
            "bytes": "/wA=",
            "tags": ["a", None],
            "nested": {"x": 1, "at": ["2024-05-01 12:30:00.000000000+0000"]},
            "map": {"k": 1},
            "kind": "a",
            "nothing": None,
            "nan": None,
        }

    def test_messages_are_a_list_or_json_and_nothing_is_not_given(self, tmp_path: Path) -> None:
        own = [{"role": "user", "content": "hi", "name": None}, {"role": "user", "content": "ho", "name": "Kim"}]
        rows = [
            {"messages": own, "max_tokens": 5.0, "seed": None, "response_format": '{"type": "text"}'},
            {"messages": own[1:], "max_tokens": None, "seed": 3, "response_format": None},
        ]
        first, second = read(tmp_path, as_parquet(rows), "rows.parquet")
        assert first["messages"] == [{"role": "user", "content": "hi"}, own[1]]
        assert (first["max_tokens"], type(first["max_tokens"])) == (5, int)
        assert first["response_format"] == {"type": "text"}
        assert second == {"messages": own[1:], "seed": 3}

    def test_a_row_that_cannot_be_read_is_a_bad_row(self, tmp_path: Path) -> None:
        days = pa.array([0, 1 << 30, 1], pa.int32()).cast(pa.date32())
        sink = io.BytesIO()
        pq.write_table(pa.table({"prompt": ["a", "b", "c"], "day": days}), sink)
        (bad,) = bad_rows(tmp_path, sink.getvalue(), "rows.parquet")
        assert (bad.row, bad.error_code) == (1, "unreadable")
        assert bad.error_message.startswith("record 2: a value cannot be read: ")

    def test_a_value_that_json_cannot_hold_is_a_bad_row(self, tmp_path: Path) -> None:
        sink = io.BytesIO()
        pairs = pa.array([[(b"k", 1)], []], pa.map_(pa.binary(), pa.int64()))
        pq.write_table(pa.table({"prompt": ["a", "b"], "x": pairs}), sink)
        (bad,) = bad_rows(tmp_path, sink.getvalue(), "rows.parquet")
        assert bad.error_message.startswith("record 1: a value cannot be written as JSON: ")

    def test_a_row_without_a_prompt_is_named_by_its_number(self, tmp_path: Path) -> None:
        (bad,) = bad_rows(tmp_path, as_parquet([{"prompt": "a"}, {"prompt": ""}]), "rows.parquet")
        assert bad.error_message.startswith("record 2: prompt must be text that is not empty")

    @pytest.mark.parametrize("end", [6, -1, -9, -30])
    def test_a_broken_file_is_refused(self, tmp_path: Path, end: int) -> None:
        assert "as Parquet: " in complaint(kept(tmp_path, as_parquet([{"prompt": "a"}])[:end], "rows.parquet"))

    def test_a_file_without_rows_is_refused(self, tmp_path: Path) -> None:
        sink = io.BytesIO()
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), sink)
        assert "has no rows" in complaint(kept(tmp_path, sink.getvalue(), "rows.parquet"))

    def test_two_columns_of_one_name_are_refused(self, tmp_path: Path) -> None:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["x", "x"]), sink)
        assert "two columns named 'x'" in complaint(kept(tmp_path, sink.getvalue(), "rows.parquet"))

    def test_a_part_reads_only_its_row_groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []
        batches = pq.ParquetFile.iter_batches

        def watched(self: Any, **how: Any) -> Any:
            asked.extend(how["row_groups"])
            return batches(self, **how)

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
        location = kept(tmp_path, as_parquet([{"prompt": str(at)} for at in range(30)], row_group_size=10), "rows")
        lines = list(read_lines(location, Range(start=12, end=19, first_row=12, first_line=13)))
        assert [orjson.loads(line.data or b"")["prompt"] for line in lines] == [str(at) for at in range(12, 19)]
        assert asked == [1]


class TestPacked:
    """gzip and zstd."""

    @pytest.mark.parametrize("pack", [gzip.compress, zstd])
    def test_several_members_are_one_file(self, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
        data = b"".join(pack(b'{"prompt": "%d"}\n' % at) for at in range(50))
        assert [row["prompt"] for row in read(tmp_path, data, "rows")] == [str(at) for at in range(50)]

    @pytest.mark.parametrize("pack", [gzip.compress, zstd])
    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, pack: Callable[[bytes], bytes], name: str) -> None:
        data = pack(b"prompt,x\n" + os.urandom(4000).hex().encode())
        inside = [] if pack is zstd else [data[:100] + b"\0" * 100 + data[200:]]  # Arrow's zstd has no checksums
        for broken in (data[:-20], data + b"more", *inside):
            assert "is damaged: " in complaint(kept(tmp_path, broken, name))

    def test_what_is_within_is_looked_at_too(self, tmp_path: Path) -> None:
        assert "is empty" in complaint(kept(tmp_path, gzip.compress(b""), "rows.gz"))
        packed = kept(tmp_path, gzip.compress(b'[{"prompt": "a"}]'), "rows.gz")
        assert f"gzip -dc {packed} | jq -c '.[]' > lines.jsonl" in complaint(packed)
        twice = complaint(kept(tmp_path, zstd(as_parquet([{"prompt": "a"}])), "rows.parquet.zst"))
        assert "is Parquet within zstd. Unpack it once: zstd -dc" in twice
        assert "is gzip within gzip" in complaint(kept(tmp_path, gzip.compress(gzip.compress(b"a")), "rows.gz"))


class _FailingDisk(io.BytesIO):
    """Reads well up to a point."""

    good = 4096

    def readinto(self, buffer: Any) -> int:
        if self.tell() >= self.good:
            raise OSError(5, "Input/output error")
        with memoryview(buffer)[: self.good] as part:
            return super().readinto(part)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "packed", "rows.csv", "rows.parquet"])
def test_a_disk_that_fails_is_not_taken_for_a_damaged_file(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = [{"prompt": os.urandom(2000).hex()} for _ in range(50)]
    disk = io.BufferedReader(_FailingDisk(WRITERS[name](rows)))  # type: ignore[arg-type]
    monkeypatch.setattr("clients.prompts.lines.open_input", lambda _: disk)
    with pytest.raises(PromptsError, match=f"cannot read {name}: Input/output error. Run the same command again."):
        list(read_lines(name))


MEASURE = """
import resource, sys
import pyarrow.parquet, pyarrow.compute
from clients.prompts.check import check_prompts
from clients.prompts.rows import JobDefaults
check_prompts(sys.argv[2], JobDefaults())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = check_prompts(sys.argv[1], JobDefaults())
print(found.rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    "name",
    ["rows.jsonl.gz", *(pytest.param(each, marks=pytest.mark.slow) for each in ("packed", "rows.csv", "rows.parquet"))],
)
def test_a_large_file_is_read_in_flat_memory(tmp_path: Path, name: str) -> None:
    """200 MB of text, in Parquet as one row group."""
    text = os.urandom(5000).hex()
    rows = [{"prompt": f"{at} {text[at % 5000 :]}"} for at in range(30_000)]
    small = kept(tmp_path, WRITERS[name](rows[:10]), f"small {name}")
    write = (lambda found: as_parquet(found, len(found))) if "parquet" in name else WRITERS[name]
    large = kept(tmp_path, write(rows), name)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, large, small], capture_output=True, text=True, check=True, env=environment
    )
    count, grown = map(int, done.stdout.split())
    assert count == 30_000
    assert grown < 64, grown
