"""Users write addresses in many ways; we use one."""

import pytest

from clients.endpoint import base_url
from clients.errors import SettingsError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("http://host:8000/v1//", "http://host:8000/v1"),
        ("http://host:8000/v1/chat/completions", "http://host:8000/v1"),
        ("http://host:8000/v1/chat/completions/", "http://host:8000/v1"),
        ("http://host:8000/chat/completions", "http://host:8000/v1"),
        ("http://host/v1/models", "http://host/v1"),
        ("http://host/serving/models", "http://host/serving/models/v1"),
        ("http://host/serving/ns/name/v1", "http://host/serving/ns/name/v1"),
        ("http://host/serving/ns/name/v1/chat/completions", "http://host/serving/ns/name/v1"),
        ("https://host/openai", "https://host/openai/v1"),
        ("HTTP://Host", "http://Host/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        (" http://host\n", "http://host/v1"),
    ],
)
def test_every_usual_spelling_becomes_one_base_url(written: str, meant: str) -> None:
    assert base_url(written) == meant
    assert base_url(meant) == meant


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("", "is empty"),
        ("localhost:8000/v1", "no scheme: write http://localhost:8000/v1"),
        ("host", "no scheme"),
        ("ftp://host", "scheme 'ftp'"),
        ("http://", "names no host"),
        ("http:///v1", "names no host"),
        ("http://:8000/v1", "names no host"),
        ("http://my host/v1", "blanks"),
        ("http://host/v1\x00", "control characters"),
        ("http://host:eighty/v1", "cannot be read"),
        ("http://host:99999/v1", "cannot be read"),
        ("http://[::1/v1", "cannot be read"),
        ("http://host/v1?key=1", "query"),
        ("http://host/v1#top", "fragment"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_the_reason(written: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        base_url(written)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "written",
    [
        "http://user:hunter2@host/v1",
        "user:hunter2@host",
        "ftp://user:hunter2@host",
        "http://user:hunter2@host:x",
        "http://user:hunter2@my host",
    ],
)
def test_a_password_in_an_address_is_refused_and_never_repeated(written: str) -> None:
    with pytest.raises(SettingsError) as caught:
        base_url(written)
    assert "hunter2" not in str(caught.value)


def test_who_wrote_a_key_into_the_address_is_told_where_keys_go() -> None:
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        base_url("http://key@host/v1")
