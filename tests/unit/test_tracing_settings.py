"""What the environment says of tracing, and what becomes of it when it says nonsense."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.errors import SettingsError
from clients.tracing.settings import TraceSettings
from tests.unit.tracing_rows import events

KEYS = {"LANGFUSE_PUBLIC_KEY": "pk-lf-1", "LANGFUSE_SECRET_KEY": "sk-lf-2"}
HOST = {"LANGFUSE_HOST": "http://langfuse:3000"}


def read(environ: dict[str, str], **arguments: Any) -> tuple[TraceSettings | None, list[str]]:
    with events() as seen:
        found = TraceSettings.from_environment(environ, **arguments)
    return found, [f"{event['reason']}; {event['then']}" for event in seen]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        HOST,
        {"LANGFUSE_PUBLIC_KEY": "", "LANGFUSE_SECRET_KEY": " ", **HOST},
        {**KEYS, **HOST, "LANGFUSE_TRACING_ENABLED": "False"},
    ],
)
def test_without_keys_or_when_it_is_disabled_tracing_is_off_and_says_nothing(environ: dict[str, str]) -> None:
    assert read(environ) == (None, [])


def test_the_newer_name_of_the_address_stands_before_the_older_one_and_an_empty_one_is_not_set() -> None:
    base = "https://langfuse.example/base/"
    found, said = read({**KEYS, **HOST, "LANGFUSE_BASE_URL": base})
    assert found is not None
    assert (found.base_url, said) == ("https://langfuse.example/base", [])
    found, said = read({**KEYS, **HOST, "LANGFUSE_BASE_URL": ""})
    assert found is not None
    assert (found.base_url, said) == ("http://langfuse:3000", [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"LANGFUSE_HOST": ""}, "LANGFUSE_BASE_URL"),
        ({"LANGFUSE_HOST": "langfuse:3000"}, "'langfuse:3000' has no scheme"),
        ({"LANGFUSE_HOST": "ftp://langfuse"}, "no address of a server"),
        ({"LANGFUSE_HOST": "http://"}, "no address of a server"),
        ({"LANGFUSE_HOST": "http://langfuse:port"}, "cannot be read"),
        ({"LANGFUSE_HOST": "http://me:secret@langfuse"}, "no address of a server"),
        ({"LANGFUSE_HOST": "http://lang fuse"}, "no address of a server"),
        ({"LANGFUSE_HOST": "http://langfuse?a=b"}, "no address of a server"),
        ({"LANGFUSE_HOST": "http://랭퓨즈"}, "no address of a server"),
        ({"LANGFUSE_SECRET_KEY": ""}, "LANGFUSE_SECRET_KEY is not set"),
        ({"LANGFUSE_PUBLIC_KEY": ""}, "LANGFUSE_PUBLIC_KEY is not set"),
        ({"LANGFUSE_SECRET_KEY": "sk\nlf"}, "LANGFUSE_SECRET_KEY holds characters"),
        ({"LANGFUSE_PUBLIC_KEY": "pk:lf"}, "LANGFUSE_PUBLIC_KEY holds characters"),
    ],
)
def test_what_cannot_be_used_is_told_with_a_mend_and_tracing_is_off(changes: dict[str, str], words: str) -> None:
    found, said = read({**KEYS, **HOST, **changes})
    assert found is None
    assert len(said) == 1
    assert words in said[0]
    assert said[0].endswith("tracing is off")
    assert "secret@" not in said[0]
    assert "sk\nlf" not in said[0]


@pytest.mark.parametrize(
    ("name", "value", "attribute"),
    [
        ("LANGFUSE_TIMEOUT", "soon", "timeout_s"),
        ("LANGFUSE_TIMEOUT", "-1", "timeout_s"),
        ("LANGFUSE_TIMEOUT", "nan", "timeout_s"),
        ("LANGFUSE_SAMPLE_RATE", "1.5", "sample_rate"),
        ("LANGFUSE_SAMPLE_RATE", "10%", "sample_rate"),
        ("LANGFUSE_FLUSH_AT", "4096", "flush_at"),
        ("LANGFUSE_FLUSH_INTERVAL", "x", "flush_interval_s"),
        ("LANGFUSE_TRACING_ENVIRONMENT", "Prod!", "environment"),
        ("LANGFUSE_TRACING_ENVIRONMENT", "langfuse-x", "environment"),
    ],
)
def test_a_bad_number_or_name_takes_its_default_and_is_told(name: str, value: str, attribute: str) -> None:
    plain, _ = read({**KEYS, **HOST})
    found, said = read({**KEYS, **HOST, name: value})
    assert found is not None
    assert getattr(found, attribute) == getattr(plain, attribute)
    assert len(said) == 1
    assert name in said[0]
    assert value in said[0]


def test_good_values_are_taken() -> None:
    found, said = read(
        {
            **KEYS,
            **HOST,
            "LANGFUSE_TIMEOUT": "1.5",
            "LANGFUSE_SAMPLE_RATE": "0.25",
            "LANGFUSE_FLUSH_AT": "100",
            "LANGFUSE_FLUSH_INTERVAL": "2",
            "LANGFUSE_TRACING_ENVIRONMENT": "prod-1",
            "LANGFUSE_RELEASE": "v1.2",
            "LANGFUSE_TRACING_ENABLED": "true",
        },
        content="hash",
        scores=True,
    )
    assert said == []
    assert found is not None
    assert (found.timeout_s, found.sample_rate, found.flush_at, found.flush_interval_s) == (1.5, 0.25, 100, 2.0)
    assert (found.environment, found.release, found.content, found.scores) == ("prod-1", "v1.2", "hash", True)
    assert "sk-lf-2" not in repr(found)
    chosen, _ = read({**KEYS, **HOST, "LANGFUSE_SAMPLE_RATE": "0.25"}, sample_rate=0.5)
    assert chosen is not None
    assert chosen.sample_rate == 0.5


@pytest.mark.parametrize("arguments", [{"content": "some"}, {"sample_rate": 2.0}])
def test_an_argument_out_of_its_range_is_an_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        TraceSettings.from_environment({**KEYS, **HOST}, **arguments)


def test_the_engine_loads_nothing_of_tracing_but_the_object_that_does_nothing() -> None:
    code = (
        "import sys, clients.batch.engine\n"
        "from clients.tracing.tracer import NoTracer, open_tracer\n"
        "assert isinstance(open_tracer(None, None, spool=None), NoTracer)\n"
        "print(sorted(name for name in sys.modules if name.startswith(('clients.tracing', 'langfuse', 'opentelemetry',"
        " 'google.protobuf'))))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['clients.tracing', 'clients.tracing.tracer']"
