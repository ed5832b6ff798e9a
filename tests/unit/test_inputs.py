"""Prompts as text, on the hub, and what cannot be opened."""

import base64
import gzip
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import PromptsError
from clients.prompts.lines import read_lines
from clients.storage import open_input
from clients.storage.inputs import _web_address, at_hand

ROWS = b'{"prompt": "one"}\n{"prompt": "two"}\n'


def inline(data: bytes, kind: str = "jsonl") -> str:
    return f"inline:{kind}:{base64.b64encode(gzip.compress(data, mtime=0)).decode()}"


def complaint(prompts: str) -> str:
    with pytest.raises(PromptsError) as caught, at_hand(prompts):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "data", "rows"),
    [
        ("jsonl", ROWS, [b'{"prompt": "one"}', b'{"prompt": "two"}']),
        ("csv", b"prompt\none\ntwo\n", [b'{"prompt":"one"}', b'{"prompt":"two"}']),
        ("tsv", b"prompt\tx\none\t1\n", [b'{"prompt":"one","x":"1"}']),
    ],
)
def test_inline_prompts_are_a_file_for_as_long_as_they_are_needed(kind: str, data: bytes, rows: list[bytes]) -> None:
    with at_hand(inline(data, kind)) as location:
        assert [line.data for line in read_lines(location)] == rows
        path = Path(location)
        assert path.name == f"inline-prompts.{kind}"
        assert path.parent.stat().st_mode & 0o077 == 0, "prompts are nobody else's"
    assert not path.parent.exists()


def test_inline_prompts_without_a_kind_are_lines() -> None:
    with at_hand(f"inline::{base64.b64encode(gzip.compress(ROWS)).decode()}") as location:
        assert location.endswith(".jsonl")


@given(st.binary(max_size=200))
def test_any_bytes_come_back_as_they_were(data: bytes) -> None:
    with at_hand(inline(data)) as location:
        assert Path(location).read_bytes() == data


@given(st.text(max_size=60))
def test_garbage_is_refused_in_one_line(garbage: str) -> None:
    assert "inline prompts cannot be read" in complaint(f"inline:jsonl:{garbage}")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (inline(ROWS)[:-20], "inline prompts cannot be read"),
        ("inline:jsonl:" + base64.b64encode(zlib.compress(ROWS)).decode(), "incorrect header check"),
        (inline(ROWS, "../../etc/x"), "of no known kind"),
        (inline(ROWS, "JSONL"), "of no known kind"),
        (inline(bytes(65 << 20)), "too long"),
    ],
)
def test_what_is_no_inline_prompts_is_refused(prompts: str, message: str) -> None:
    said = complaint(prompts)
    assert message in said
    assert len(said) < 300, "the prompts are not repeated"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://datasets/o/n/p.jsonl", "https://huggingface.co/datasets/o/n/resolve/main/p.jsonl"),
        ("hf://datasets/o/n@v1/in/p.parquet", "https://huggingface.co/datasets/o/n/resolve/v1/in/p.parquet"),
        ("hf://o/n/p.jsonl", "https://huggingface.co/o/n/resolve/main/p.jsonl"),
    ],
)
def test_a_file_on_the_hub_has_a_web_address(address: str, expected: str) -> None:
    assert _web_address(address) == expected
    with at_hand(address) as location:
        assert location == expected


@pytest.mark.parametrize("address", ["hf://", "hf://datasets", "hf://datasets/o/n", "hf://o"])
def test_an_address_on_the_hub_without_a_file_is_refused(address: str) -> None:
    assert complaint(address) == f"cannot use {address}. Write hf://datasets/OWNER/NAME/FILE."


def test_a_path_is_left_as_it_is(tmp_path: Path) -> None:
    with at_hand("some/p.jsonl") as location:
        assert location == "some/p.jsonl"


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    keep = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        for path, message in [
            (tmp_path / "none", "no such file"),
            (tmp_path, "is a folder. Give --prompts one file inside it."),
            (tmp_path / "pipe", "is a pipe"),
            (tmp_path / ("x" * 300), "cannot read"),
        ]:
            with pytest.raises(PromptsError) as caught:
                open_input(str(path))
            assert message in str(caught.value)
    finally:
        os.close(keep)
