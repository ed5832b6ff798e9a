import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clients.errors import PromptsError, StorageError
from clients.preflight_view import DryRun, print_preflight
from clients.prompts import repeats
from clients.prompts.lines import Line
from clients.prompts.preflight import Rate, TokenCounter, Tokens
from clients.prompts.repeats import Repeats
from clients.prompts.rows import JobDefaults, parse_row
from clients.records import ChatRequest
from tests.servers.openai_server import OpenAIServer

MODEL = "qwen3-30b-fp8"


@given(st.lists(st.integers(0, 20) | st.integers(0, (1 << 64) - 1), max_size=60), st.sampled_from([1, 2, 7, 100]))
def test_repeats_are_counted_in_whatever_portions_they_come(keys: list[int], block: int) -> None:
    before = repeats._BLOCK
    repeats._BLOCK = block
    try:
        with Repeats() as found:
            for at, key in enumerate(keys):
                if at == len(keys) // 2:
                    assert found.count() == at - len(set(keys[:at]))
                found.add(key)
            assert found.count() == len(keys) - len(set(keys))
    finally:
        repeats._BLOCK = before


def test_millions_of_keys_take_a_few_megabytes() -> None:
    script = (
        "import random, resource\n"
        "from clients.prompts.repeats import Repeats\n"
        "draw = random.Random(1).getrandbits\n"
        "with Repeats() as found:\n"
        "    for _ in range(200_000): found.add(draw(64))\n"
        "    found.count()\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    for at in range(3_000_000): found.add(draw(64) if at % 3 else 5)\n"
        "    print(found.count(), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    count, grown = map(int, done.stdout.split())
    assert count == 999_999
    assert grown < 12, grown


def test_no_room_for_the_keys_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_BLOCK", 2)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with Repeats() as found:
        found.add(1)
        with pytest.raises(StorageError, match="cannot write /nowhere"):
            found.add(2)


def counted(*rows: dict[str, Any]) -> Tokens:
    counter = TokenCounter()
    for at, fields in enumerate(rows):
        line = Line(at, at + 1, 0, orjson.dumps(fields))
        request = parse_row(line, JobDefaults()).request
        assert isinstance(request, ChatRequest)
        counter.take(request.payload, line)
    return counter.tokens()


ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody was surprised. " * 40
KOREAN = "빠른 갈색 여우가 게으른 개를 뛰어넘었고 아무도 놀라지 않았습니다. " * 40


class TestTokens:
    """What is told without a tokenizer."""

    @pytest.mark.parametrize(("text", "letters_per_token"), [(ENGLISH, 4.0), (KOREAN, 1.9)])
    def test_a_prompt_is_estimated_from_its_letters(self, text: str, letters_per_token: float) -> None:
        found = counted({"prompt": text})
        assert found.prompt == pytest.approx(len(text) / letters_per_token, rel=0.1)
        assert (found.longest, found.longest_at) == (found.prompt, "line 1")

    def test_what_is_attached_does_not_count_and_tools_do(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
        content = [{"type": "text", "text": ENGLISH}, image]
        with_image = counted({"messages": [{"role": "user", "content": content}, {"role": "user", "content": "a"}]})
        assert with_image.prompt == pytest.approx(len(ENGLISH) / 4, rel=0.1)
        tools = [{"type": "function", "function": {"name": "x", "description": ENGLISH}}]
        assert counted({"prompt": "a", "tools": tools}).prompt == pytest.approx(len(ENGLISH) / 4, rel=0.1)

    def test_the_longest_row_and_the_limits_of_answers_are_known(self) -> None:
        rows = ({"prompt": "a", "max_tokens": 5}, {"prompt": ENGLISH, "max_completion_tokens": 7}, {"prompt": "b"})
        found = counted(*rows)
        assert found.longest_at == "line 2"
        assert (found.max_tokens, found.limited) == (12, 2)
        assert Tokens.from_json(orjson.loads(orjson.dumps(found))) == found

    @given(st.lists(st.integers(1, 200_000), min_size=1, max_size=200), st.integers(1, 200_000))
    def test_rows_beyond_a_limit_are_told_within_a_tenth_of_the_limit(self, answers: list[int], limit: int) -> None:
        needs = [answer + counted({"prompt": "a"}).prompt for answer in answers]
        beyond = counted(*({"prompt": "a", "max_tokens": answer} for answer in answers)).beyond(limit)
        assert sum(need > limit * 1.11 for need in needs) <= beyond <= sum(need > limit / 1.11 for need in needs)


@pytest.mark.parametrize(
    "summary",
    [None, [], {}, {"output_tokens_per_s": None}, {"output_tokens_per_s": 5, "completion_tokens_per_row": None}],
)
def test_a_summary_without_a_rate_tells_none(summary: Any) -> None:
    assert Rate.from_summary(summary) is None


def shown(prompts: Path, **plan: Any) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    fields: dict[str, Any] = {
        "prompts": prompts,
        "defaults": JobDefaults(),
        "url": "",
        "model": "",
        "api_key": None,
        "earlier": (),
        "gpus": 0,
        "join_duplicates": True,
    }
    print_preflight(DryRun(**{**fields, **plan}), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestDryRun:
    """What a person reads before anything is sent."""

    @pytest.fixture
    def prompts(self, tmp_path: Path) -> Path:
        rows: list[Any] = [{"custom_id": "x", "prompt": "a", "max_tokens": 10}] * 3
        rows += [{"prompt": ""}] * 7 + [{"prompt": ENGLISH, "max_tokens": 130_900}, {"prompt": "[red]b[/red]"}]
        path = tmp_path / "p.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def test_the_input_is_described(self, prompts: Path) -> None:
        text = shown(prompts)
        assert f"12 rows in {prompts}, 3 to send" in " ".join(text.split())
        assert "7 malformed, which are not sent:\n    line 4: prompt must be text" in text
        assert "2 asking the same as an earlier row, which get that row's answer" in text
        assert "2 with the id of an earlier row" in text
        assert re.search(r"^Prompts +about \d+ tokens, 1\d\d a row; the longest about 7\d\d, on line 11$", text, re.M)
        assert "at most 130,930 tokens in 4 rows; the others have no max_tokens" in text
        assert "Model     not asked: no --url" in text
        assert "Time      not known" in text
        assert "which are sent all the same" in shown(prompts, join_duplicates=False)

    def test_an_input_without_anything_remarkable_is_described_in_few_words(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
        text = shown(tmp_path / "p.jsonl")
        assert "1 malformed, which are not sent:\n    line 2" in text
        assert "…" not in text
        assert "earlier row" not in text
        assert "no max_tokens: each may be as long as the model lets it be" in text
        (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
        assert "malformed" not in shown(tmp_path / "p.jsonl")

    def test_the_models_limit_is_asked_for(self, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with OpenAIServer().in_thread() as server:
            text = shown(prompts, url=server.url)
            assert f"{MODEL} at {server.url} takes 131,072 tokens, prompt and answer together; about 1 row may" in text
            assert server.requests == []
            server.max_model_len = 10_000_000
            monkeypatch.setattr("clients.preflight_view.max_model_len", lambda *_, **__: None)
            assert "it does not say how many tokens it takes" in shown(prompts, url=server.url)
            monkeypatch.undo()
            assert "no row needs more" in shown(prompts, url=server.url)
            assert "serves no model 'other'" in shown(prompts, url=server.url, model="other")
        assert "cannot reach" in shown(prompts, url=server.url)

    def test_time_and_gpu_hours_are_told_by_an_earlier_run(self, prompts: Path, tmp_path: Path) -> None:
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken/summary.json").write_text("{")
        summary = {"output_tokens_per_s": 0.5, "completion_tokens_per_row": {"mean": 1200.0}}
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        earlier = (tmp_path / "none", tmp_path / "broken", tmp_path)
        text = shown(prompts, earlier=earlier, gpus=16)
        assert "about 2 h, 32.0 GPU hours, at 30.0 tokens/min and 1,200 tokens an answer as in" in text
        assert "GPU" not in shown(prompts, earlier=earlier)

    def test_an_input_that_cannot_be_sent_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text("{}\n")
        with pytest.raises(PromptsError, match="no row of"):
            shown(tmp_path / "p.jsonl")


def test_a_random_table_of_keys_is_counted_through_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_BLOCK", 1000)
    draw = random.Random(3)
    keys = [draw.getrandbits(64) for _ in range(20_000)]
    keys += draw.sample(keys, 500)
    with Repeats() as found:
        for key in keys:
            found.add(key)
        assert found.count() == 500
