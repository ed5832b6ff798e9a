"""The pages and their Korean twins are parallel, and what they say is what the code does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clients.fake_vllm.faults import KINDS
from clients.records import Outcome
from clients.results.schema import COLUMNS
from clients.results.verdict import judge

ROOT = Path(__file__).resolve().parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README_ko.md").read_text(encoding="utf-8")
ENGINE_ENGLISH = (ROOT / "docs/engine.md").read_text(encoding="utf-8")
ENGINE_KOREAN = (ROOT / "docs/engine_ko.md").read_text(encoding="utf-8")
SERVING_ENGLISH = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
SERVING_KOREAN = (ROOT / "docs/serving_ko.md").read_text(encoding="utf-8")

#: Commands whose flags the pages name.
COMMANDS = (
    ("-m", "pipelines.run"),
    ("-m", "pipelines.compile"),
    ("-m", "pipelines.doctor"),
    ("-m", "pipelines.run", "--host", "x"),
    ("-m", "pipelines.schedule"),
    ("-m", "pipelines.schedule", "create"),
    *(("-m", "clients.serving", command) for command in ("manifest", "deploy", "status", "release", "sweep")),
    ("-m", "clients.batch"),
    ("-m", "clients.fake_vllm"),
    ("clients/query_vllm.py",),
)


def headings(text: str) -> list[int]:
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [len(mark) for mark in re.findall(r"^(#+) ", without_code, flags=re.MULTILINE)]


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```", text, flags=re.DOTALL | re.MULTILINE)


def tables(text: str) -> list[int]:
    """The number of rows of each table."""
    return [found.count("\n") for found in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]


def first_cells(text: str, header: str) -> list[str]:
    """The first column of the table whose header line begins with `header`."""
    (table,) = re.findall(rf"^\| {re.escape(header)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    return [line.split("|")[1].strip().strip("`") for line in table.splitlines()]


def commands() -> list[str]:
    return [line for block in code_blocks(ENGLISH) if block.startswith("```sh") for line in block.splitlines()[1:-1]]


def help_of(*command: str) -> str:
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def flags(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", text))


@pytest.mark.parametrize(
    ("english", "korean"), [(ENGLISH, KOREAN), (ENGINE_ENGLISH, ENGINE_KOREAN), (SERVING_ENGLISH, SERVING_KOREAN)]
)
def test_both_have_the_same_headings_tables_and_code(english: str, korean: str) -> None:
    assert headings(english) == headings(korean)
    assert tables(english) == tables(korean)
    assert code_blocks(english) == code_blocks(korean)


@pytest.mark.parametrize(("text", "header"), [(ENGLISH, "column"), (KOREAN, "열")])
def test_the_columns_are_those_of_the_schema(text: str, header: str) -> None:
    assert first_cells(text, header)[:-1] == COLUMNS.names


@pytest.mark.parametrize("text", [ENGLISH, KOREAN])
def test_the_outcomes_are_those_of_the_code(text: str) -> None:
    assert first_cells(text, "outcome") == [outcome.value for outcome in Outcome]


@pytest.mark.parametrize("text", [ENGLISH, KOREAN])
def test_the_verdicts_are_those_of_the_code(text: str) -> None:
    named = first_cells(text, "verdict")
    everything = judge([dict.fromkeys([*named, "no such verdict"], 1.0)])
    assert everything is not None
    assert [*everything["seconds"]] == named  # the words that it knows
    assert all(judge([{kind: 1.0}]) for kind in named)
    states = (ROOT / "clients/batch/verdict.py").read_text(encoding="utf-8")
    assert set(re.findall(r'"([a-z]+-bound|waiting)"', states)) == set(named)


@pytest.mark.parametrize(("text", "header"), [(ENGINE_ENGLISH, "fault"), (ENGINE_KOREAN, "오류")])
def test_the_faults_are_those_of_the_fake_server(text: str, header: str) -> None:
    assert first_cells(text, header) == [*KINDS]


@pytest.mark.parametrize(("text", "header"), [(ENGINE_ENGLISH, "event"), (ENGINE_KOREAN, "이벤트")])
def test_the_events_are_those_of_the_engine(text: str, header: str) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "clients/batch").glob("*.py"))
    emitted = set(re.findall(r'emit\(\s*logger,\s*"([a-z.]+)"', sources))
    assert set(first_cells(text, header)) == emitted


def test_every_flag_named_exists() -> None:
    known = flags("".join(help_of(*command) for command in COMMANDS))
    others = {"--constraint", "--from-literal", "--previous", "--enable-expert-parallel"}  # of pip, kubectl and vLLM
    pages = ENGLISH + KOREAN + ENGINE_ENGLISH + ENGINE_KOREAN + SERVING_ENGLISH + SERVING_KOREAN
    assert flags(pages) <= known | others


@pytest.mark.parametrize(("text", "header"), [(SERVING_ENGLISH, "cause"), (SERVING_KOREAN, "원인")])
def test_the_causes_are_those_of_the_diagnosis(text: str, header: str) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "clients/serving").glob("*.py"))
    named = set(first_cells(text, header))
    assert named - set(re.findall(r"[a-z_]+", sources)) == set()
    assert set(re.findall(r'Cause\(kind="([a-z_]+)"', sources)) <= named


@pytest.mark.parametrize("module", ["clients.batch", "pipelines.run"])
def test_every_flag_of_a_run_is_documented(module: str) -> None:
    assert flags(help_of("-m", module)) - {"--help"} <= flags(ENGLISH + ENGINE_ENGLISH)


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {shlex.split(command)[1] for command in commands() if command.startswith("make ")}
    assert named <= targets
    assert {"run", "test"} <= named


@pytest.mark.parametrize(
    "page",
    ["README.md", "README_ko.md", "docs/engine.md", "docs/engine_ko.md", "docs/serving.md", "docs/serving_ko.md"],
)
def test_every_link_to_a_file_leads_there(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()] == []
