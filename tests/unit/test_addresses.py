"""What is shown of an address: enough to know it again, nothing that opens it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.storage.addresses import in_full, is_uri, remember, shown


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/data/p.jsonl", "/data/p.jsonl"),
        ("what?.jsonl", "what?.jsonl"),
        ("s3://bucket/p.jsonl", "s3://bucket/p.jsonl"),
        ("https://host/p.jsonl?X-Amz-Signature=abc", "https://host/p.jsonl"),
        ("https://host/p.jsonl#abc", "https://host/p.jsonl"),
        ("s3://key:word@bucket/p", "s3://bucket/p"),
        ("cannot read https://h/a?x=1: gone, nor http://h/b?y=2#z", "cannot read https://h/a gone, nor http://h/b"),
        ("inline:jsonl:H4sIAAAA", "inline:jsonl"),
        ("inline:H4sI", "inline"),
        ("inline::H4sI", "inline:"),
    ],
)
def test_what_is_shown(address: str, expected: str) -> None:
    assert shown(address) == expected


@given(st.text(min_size=1).filter(lambda text: not any(mark.isspace() or mark in "'\"" for mark in text)))
def test_nothing_behind_the_question_mark_is_shown(secret: str) -> None:
    assert shown(f"https://host/file?{secret}") == "https://host/file"


def test_an_address_is_remembered_in_full() -> None:
    full = "https://host/file?key=1"
    assert in_full(remember(full)) == full
    assert in_full("https://host/other") == "https://host/other"
    assert remember("https://host/plain") == "https://host/plain"


def test_addresses_are_told_from_paths() -> None:
    assert [is_uri(one) for one in ("s3://b/k", "a/b", "C:/x", "minio://m")] == [True, False, False, True]
