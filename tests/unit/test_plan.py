from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import PromptsError, SettingsError
from clients.prompts import check
from clients.prompts.check import Checked, check_prompts
from clients.prompts.lines import Range, read_lines
from clients.prompts.plan import Shard
from clients.prompts.rows import JobDefaults, parse_row

ROW = b'{"prompt": "Hello"}'
DEFAULTS = JobDefaults(model="m")

#: Lines of a file in which at least one row can be sent.
LINES = st.lists(
    st.sampled_from([ROW, b'{"prompt": "Another", "topic": 5}', b"", b"  ", b"{", b"\xff", b"[]", b'{"id": 1}']),
    max_size=40,
).flatmap(lambda lines: st.permutations([*lines, ROW]))
FILES = st.builds(
    lambda lines, end, bom, last: bom + end.join(lines) + last,
    LINES,
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.sampled_from([b"", b"\n", b"\n\n"]),
)


def kept(folder: Path, data: bytes) -> str:
    path = folder / "prompts.jsonl"
    path.write_bytes(data)
    return str(path)


def usable(data: bytes) -> bool:
    return not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def assert_parts_make_the_whole(location: str, shards: int) -> None:
    checked = check_prompts(location, DEFAULTS)
    parts = checked.cut(shards)
    whole = list(read_lines(location))
    by_part = [list(read_lines(location, part)) for part, _ in parts]
    assert [line for lines in by_part for line in lines] == whole
    assert [len(lines) for lines in by_part] == [rows for _, rows in parts]
    assert checked.rows == len(whole)
    assert 1 <= len(parts) <= min(shards, checked.rows)
    assert all(lines for lines in by_part)


@given(FILES.filter(usable), st.integers(1, 60))
def test_shards_partition_the_rows_and_read_what_the_whole_reads(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, shards: int
) -> None:
    location = kept(tmp_path_factory.mktemp("plan"), data)
    assert_parts_make_the_whole(location, shards)
    sizes = [rows for _, rows in check_prompts(location, DEFAULTS).cut(shards)]
    assert len(sizes) == min(shards, sum(sizes))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17, 100, 333])
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 50, 1000])
def test_shards_partition_the_rows_when_few_places_to_cut_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, shards: int
) -> None:
    monkeypatch.setattr(check, "_MAX_MARKS", 8)
    location = kept(tmp_path, b"\n\n".join([ROW] * rows))
    assert len(check_prompts(location, DEFAULTS).marks) <= 8
    assert_parts_make_the_whole(location, shards)


def test_many_rows_are_cut_evenly(tmp_path: Path) -> None:
    location = kept(tmp_path, b"{}\n" * 40_000 + ROW)
    sizes = [rows for _, rows in check_prompts(location, DEFAULTS).cut(7)]
    assert sum(sizes) == 40_001
    assert max(sizes) - min(sizes) < 10


@given(FILES.filter(usable))
def test_what_was_found_travels_as_json(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    checked = check_prompts(kept(tmp_path_factory.mktemp("plan"), data), DEFAULTS)
    assert Checked.from_json(checked.to_json()) == checked


@pytest.mark.parametrize("shards", [0, -1])
def test_fewer_than_one_shard_is_refused(tmp_path: Path, shards: int) -> None:
    with pytest.raises(SettingsError, match=f"shards must be at least 1, found {shards}"):
        check_prompts(kept(tmp_path, ROW), DEFAULTS).cut(shards)


def test_bad_rows_are_counted_and_the_first_ones_shown(tmp_path: Path) -> None:
    checked = check_prompts(kept(tmp_path, b"{\n" * 9 + ROW), DEFAULTS)
    assert (checked.rows, checked.invalid) == (10, 9)
    assert [example.row for example in checked.examples] == [0, 1, 2, 3, 4]
    assert checked.examples[4].error_message.startswith("line 5: not valid JSON")


def test_an_input_without_a_row_that_can_be_sent_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    location = kept(tmp_path, b'\n{"question": "a"}\n{}\n')
    with pytest.raises(PromptsError) as caught:
        check_prompts(location, DEFAULTS)
    assert str(caught.value) == (
        f"no row of {location} can be sent, 2 of 2 are malformed; "
        'line 2: expected one of prompt and messages, found neither (fields: ["question"]); '
        "--prompt-column NAME takes another column, --template TEXT makes a prompt from several"
    )


def test_rows_that_share_an_id_are_counted_and_none_is_dropped(tmp_path: Path) -> None:
    lines = [b'{"custom_id": "a", "prompt": "%d"}' % number for number in range(3)]
    lines += [b'{"id": "a", "prompt": "x"}', b'{"id": 7, "prompt": "x"}', b'{"custom_id": "7", "prompt": "x"}']
    checked = check_prompts(kept(tmp_path, b"\n".join([*lines, ROW, ROW])), DEFAULTS)
    assert (checked.rows, checked.invalid, checked.repeated_ids) == (8, 0, 4)


def test_rows_that_ask_the_same_are_counted(tmp_path: Path) -> None:
    lines = [b'{"prompt": "a", "topic": 1}', b'{"topic": 2, "prompt": "a"}', b'{"prompt": "b"}', b'{"prompt": ""}']
    assert check_prompts(kept(tmp_path, b"\n".join([*lines, *lines])), DEFAULTS).duplicates == 4


def test_a_template_makes_the_requests(tmp_path: Path) -> None:
    location = kept(tmp_path, b'{"text": "a"}\n{"text": ""}\n{"text": "a", "x": 1}')
    checked = check_prompts(location, JobDefaults(template="Translate {text}"))
    assert (checked.rows, checked.invalid, checked.duplicates) == (3, 1, 1)
    assert checked.carried == {"text": "text", "x": "int"}


def test_the_kinds_of_carried_columns_are_learnt_from_bad_rows_too(tmp_path: Path) -> None:
    data = b'{"prompt": "a", "x": 1, "y": null}\n{"prompt": "", "x": 2.5}\n{"prompt": "b", "z": [1]}'
    assert check_prompts(kept(tmp_path, data), DEFAULTS).carried == {"x": "float", "y": "", "z": "json"}


def test_the_fingerprint_changes_with_the_content_of_any_row_and_not_with_blank_lines(tmp_path: Path) -> None:
    def fingerprint(data: bytes) -> str:
        return check_prompts(kept(tmp_path, data), DEFAULTS).fingerprint

    first = fingerprint(ROW + b"\n" + ROW)
    assert len(first) == 16
    assert fingerprint(b"\n" + ROW + b"\r\n\n" + ROW + b"\n") == first
    assert fingerprint(ROW + b"\n" + ROW + b" ") != first
    assert fingerprint(ROW + b"\n" + ROW + b"\n{}") != first


def shard(**changes: Any) -> Shard:
    fields: dict[str, Any] = {
        "shard": 1,
        "of": 3,
        "prompts": "a b.jsonl",
        "part": Range(start=5, end=None, first_row=2, first_line=9),
        "rows": 4,
        "base_url": "http://host/v1",
        "defaults": JobDefaults(model="m", system_prompt="안녕\n", request_defaults={"max_tokens": 9}, template="{a}"),
        "carried": {"x": "int"},
        "state": "",
        "plan": "abc",
        "concurrency": 8,
    }
    return Shard(**{**fields, **changes})


def test_a_shard_travels_as_one_line_of_json() -> None:
    text = shard().to_json()
    assert "\n" not in text
    assert Shard.from_json(text) == shard()


def test_the_settings_of_a_shard_say_how_its_results_were_made() -> None:
    assert shard().settings() == {
        "prompts": "a b.jsonl",
        "base_url": "http://host/v1",
        "model": "m",
        "system_prompt": "안녕\n",
        "request_defaults": {"max_tokens": 9},
        "template": "{a}",
        "shards": 3,
    }
    assert "template" not in shard(defaults=JobDefaults()).settings()


def test_a_shard_checks_a_row_as_the_plan_did(tmp_path: Path) -> None:
    location = kept(tmp_path, ROW + b"\n" + b'{"prompt": ""}\n' + ROW)
    (first, _), (second, _) = check_prompts(location, DEFAULTS).cut(2)
    found = [parse_row(line, DEFAULTS).request for part in (first, second) for line in read_lines(location, part)]
    whole = [parse_row(line, DEFAULTS).request for line in read_lines(location)]
    assert found == whole
