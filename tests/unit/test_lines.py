import contextlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import PromptsError
from clients.prompts.check import check_prompts
from clients.prompts.lines import MAX_LINE_BYTES, Range, read_lines
from clients.prompts.rows import JobDefaults, parse_row
from clients.records import ChatRequest, InvalidRow

ROW = b'{"prompt": "Hello"}'
DEFAULTS = JobDefaults(model="m")
BOM = b"\xef\xbb\xbf"

#: Pieces from which files grow that are like JSONL and like what people take for it.
PIECES = st.sampled_from(
    [
        ROW,
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r",
        b" ",
        b"\t\n",
        BOM,
        b"{",
        b"[1]",
        b"null",
        b"\xff",
        b"\x00",
        b'{"prompt":1}\n',
    ]
)
FILES = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=30).map(b"".join))


def kept(folder: Path, data: bytes, name: str = "prompts.jsonl") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def complaint(location: str) -> str:
    with pytest.raises(PromptsError) as caught:
        check_prompts(location, DEFAULTS)
    text = str(caught.value)
    assert "\n" not in text
    assert location in text
    return text


@given(FILES)
def test_every_line_that_is_not_blank_becomes_exactly_one_row(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    location = kept(tmp_path_factory.mktemp("any"), data)
    expected = [line for line in data.removeprefix(BOM).split(b"\n") if line.strip()]
    try:
        lines = list(read_lines(location))
    except PromptsError:
        return
    assert [line.row for line in lines] == list(range(len(expected)))
    assert [line.data and line.data.strip(b"\r") for line in lines] == [line.strip(b"\r") for line in expected]
    rows = [parse_row(line, DEFAULTS) for line in lines]
    assert [row.request.row for row in rows] == list(range(len(expected)))
    assert all(isinstance(row.request, ChatRequest | InvalidRow) for row in rows)


@given(FILES)
def test_any_file_is_checked_or_refused_with_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    location = kept(tmp_path_factory.mktemp("any"), data)
    with contextlib.suppress(PromptsError):
        checked = check_prompts(location, DEFAULTS)
        assert checked.rows > checked.invalid
        return
    complaint(location)


@given(FILES)
def test_every_line_says_where_it_begins_and_which_line_it_is(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    location = kept(tmp_path_factory.mktemp("any"), data)
    try:
        lines = list(read_lines(location))
    except PromptsError:
        return
    for line in lines:
        assert data[: line.start].count(b"\n") == line.number - 1
        rest = Range(start=line.start, first_row=line.row, first_line=line.number)
        if line.start:
            assert list(read_lines(location, rest)) == lines[line.row :]


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_read_past(tmp_path: Path) -> None:
    location = kept(tmp_path, BOM + b"\r\n" + ROW + b"\r\n  \r\n" + ROW)
    assert [(line.row, line.number, line.data) for line in read_lines(location)] == [(0, 2, ROW), (1, 4, ROW)]
    assert check_prompts(location, DEFAULTS).invalid == 0


def test_a_line_of_ten_megabytes_is_a_row_like_any_other(tmp_path: Path) -> None:
    location = kept(tmp_path, ROW + b'\n{"prompt": "' + b"x" * (10 << 20) + b'"}\n' + ROW)
    checked = check_prompts(location, DEFAULTS)
    assert (checked.rows, checked.invalid) == (3, 0)


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize(("excess", "fits"), [(0, True), (1, False)])
def test_a_line_is_too_long_only_beyond_the_limit(tmp_path: Path, end: bytes, excess: int, fits: bool) -> None:
    shell = b'{"prompt": ""}'
    long = b'{"prompt": "' + b"x" * (MAX_LINE_BYTES + excess - len(shell)) + b'"}'
    location = kept(tmp_path, ROW + b"\n" + long + end)
    last = parse_row(list(read_lines(location))[-1], DEFAULTS).request
    assert isinstance(last, ChatRequest) == fits


def test_a_line_that_is_too_long_is_a_bad_row_and_takes_no_memory(tmp_path: Path) -> None:
    location = kept(tmp_path, ROW + b"\n")
    with Path(location).open("ab") as stream:
        stream.write(b'{"prompt": "')
        for _ in range(200):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n' + ROW)
    script = (
        "import resource, sys\n"
        "from clients.prompts.check import check_prompts\n"
        "from clients.prompts.rows import JobDefaults\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = check_prompts(sys.argv[1], JobDefaults())\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(found.rows, found.invalid, found.examples[0].error_code, found.examples[0].error_message, sep='|')\n"
        "assert grown < 100 << 10, grown\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, location], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "3|1|too_long|line 2: longer than 32 MiB; split the row"


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "no such file" in complaint(str(tmp_path / "nowhere.jsonl"))


def test_a_folder_is_not_taken_for_a_file(tmp_path: Path) -> None:
    assert "is a folder" in complaint(str(tmp_path))


def test_a_slash_behind_the_name_makes_no_difference(tmp_path: Path) -> None:
    assert check_prompts(kept(tmp_path, ROW) + "/", DEFAULTS).rows == 1
    assert "is a folder" in complaint(f"{tmp_path}/")


def test_an_empty_file_is_refused_with_an_example_of_a_row(tmp_path: Path) -> None:
    assert 'is empty. Write one request a line, such as {"prompt": "Hello"}.' in complaint(kept(tmp_path, b""))


@pytest.mark.parametrize("data", [b"\n\n", b" \r\n\t", BOM, BOM + b"\r\n"])
def test_a_file_of_blank_lines_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "only blank lines" in complaint(kept(tmp_path, data))


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("prompts.jsonl", ROW)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "name", "mend"),
    [
        (b"\xfd7zXZ\x00", "xz", "unxz -k"),
        (b"BZh91AY", "bzip2", "bunzip2 -k"),
        (zipped(), "a zip archive", "unzip"),
        (ROW.decode().encode("utf-16"), "UTF-16", "iconv -f UTF-16 -t UTF-8"),
        (ROW.decode().encode("utf-16-le"), "UTF-16", "iconv -f UTF-16LE"),
        (ROW.decode().encode("utf-16-be"), "UTF-16", "iconv -f UTF-16BE"),
    ],
)
def test_another_format_is_recognised_and_the_message_says_how_to_convert_it(
    tmp_path: Path, data: bytes, name: str, mend: str
) -> None:
    text = complaint(kept(tmp_path, data))
    assert f"is {name}. Read are JSONL, CSV and Parquet, also with gzip or zstd." in text
    assert mend in text


@pytest.mark.parametrize("data", [b"[" + ROW + b",\n" + ROW + b"]", BOM + b"\n [" + ROW + b"]"])
def test_a_json_array_is_recognised_and_the_message_says_how_to_convert_it(tmp_path: Path, data: bytes) -> None:
    text = complaint(kept(tmp_path, data))
    assert "is one JSON array, not JSONL" in text
    assert "jq -c '.[]' > lines.jsonl" in text


def test_a_command_in_a_message_survives_spaces_in_the_file_name(tmp_path: Path) -> None:
    location = kept(tmp_path, b"[]", "my prompts.jsonl")
    assert f"cat '{location}' | jq -c '.[]'" in complaint(location)


def test_a_command_in_a_message_names_a_file_of_a_store_as_it_is_once_it_is_fetched(tmp_path: Path) -> None:
    location = kept(tmp_path, b"[]")
    assert "Make it lines: cat prompts.jsonl |" in complaint(f"file://{location}")


def test_an_object_over_several_lines_is_explained(tmp_path: Path) -> None:
    text = complaint(kept(tmp_path, b'{\n  "prompt": "Hello"\n}\n'))
    assert "3 of 3 are malformed; line 1: not valid JSON" in text
    assert "jq -c ." in text


def test_korean_text_from_windows_is_a_bad_row_with_the_byte_and_the_mend(tmp_path: Path) -> None:
    korean = '{"prompt": "날씨가 어때요?"}'
    location = kept(tmp_path, korean.encode() + b"\n" + korean.encode("cp949") + b"\n")
    checked = check_prompts(location, DEFAULTS)
    assert (checked.rows, checked.invalid) == (2, 1)
    assert checked.examples[0].error_code == "not_utf8"
    assert checked.examples[0].error_message.startswith("line 2: not UTF-8 at byte 13 of the line")
    assert "iconv -f CP949 -t UTF-8" in checked.examples[0].error_message
    assert "1 of 1 are malformed" in complaint(kept(tmp_path, korean.encode("cp949")))


@pytest.mark.parametrize("name", ["a b.jsonl", "100%20.jsonl", "질문.jsonl", "a'b\"c.jsonl", "#x?y=1.jsonl"])
def test_file_names_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    assert check_prompts(kept(tmp_path, ROW, name), DEFAULTS).rows == 1


def test_a_file_uri_is_read(tmp_path: Path) -> None:
    location = kept(tmp_path, ROW + b"\n" + ROW, "a b%20c.jsonl")
    assert check_prompts(Path(location).as_uri(), DEFAULTS).rows == 2


@pytest.mark.parametrize("location", ["nosuch://bucket/key", "file://host/x", "file:///a b", "file:///no/such/file"])
def test_an_address_that_cannot_be_used_is_named(location: str) -> None:
    complaint(location)


def test_a_pipe_is_refused_since_it_can_be_read_only_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def feed() -> None:
        with pipe.open("wb"):
            pass

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert "is a pipe" in complaint(str(pipe))
    feeder.join(10)


def test_a_disk_that_fails_while_reading_is_reported_as_such() -> None:
    """A process's own memory can be opened and not be read at 0: the kernel says EIO, as a broken disk does."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("no /proc on this system")
    with pytest.raises(PromptsError, match=r"cannot read /proc/self/mem: .*error"):
        list(read_lines("/proc/self/mem"))


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may do everything, so a test that runs as root becomes nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    location = kept(tmp_path, ROW)
    Path(location).chmod(0)
    with without_privileges():
        assert "Permission denied. Check its permissions." in complaint(location)


def test_a_part_ends_where_it_is_told_to(tmp_path: Path) -> None:
    location = kept(tmp_path, ROW + b"\n\n" + ROW + b"\n" + ROW)
    first, second, third = read_lines(location)
    part = Range(start=first.start, end=second.start)
    assert list(read_lines(location, part)) == [first]
    assert list(read_lines(location, Range(start=third.start, first_row=2, first_line=4))) == [third]
