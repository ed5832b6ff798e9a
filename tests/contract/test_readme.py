"""The two READMEs are twins, and what they say is what the code does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clients.records import Outcome
from clients.results.schema import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README_ko.md").read_text(encoding="utf-8")


def headings(text: str) -> list[int]:
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [len(mark) for mark in re.findall(r"^(#+) ", without_code, flags=re.MULTILINE)]


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```", text, flags=re.DOTALL | re.MULTILINE)


def first_cells(text: str, header: str) -> list[str]:
    """The first column of the table whose header line begins with `header`."""
    (table,) = re.findall(rf"^\| {re.escape(header)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    return [line.split("|")[1].strip().strip("`") for line in table.splitlines()]


def commands() -> list[str]:
    return [line for block in code_blocks(ENGLISH) if block.startswith("```sh") for line in block.splitlines()[1:-1]]


def test_both_have_the_same_headings_and_code() -> None:
    assert headings(ENGLISH) == headings(KOREAN)
    assert code_blocks(ENGLISH) == code_blocks(KOREAN)


@pytest.mark.parametrize(("text", "header"), [(ENGLISH, "column"), (KOREAN, "열")])
def test_the_columns_are_those_of_the_schema(text: str, header: str) -> None:
    assert first_cells(text, header)[:-1] == COLUMNS.names


@pytest.mark.parametrize("text", [ENGLISH, KOREAN])
def test_the_outcomes_are_those_of_the_code(text: str) -> None:
    assert first_cells(text, "outcome") == [outcome.value for outcome in Outcome]


def test_every_flag_named_exists() -> None:
    helps = "".join(
        subprocess.run([sys.executable, *module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for module in (
            ("-m", "pipelines.run"),
            ("-m", "pipelines.compile"),
            ("-m", "clients.batch"),
            ("clients/query_vllm.py",),
        )
    )
    known = set(re.findall(r"--[a-z-]+", helps)) | {"--constraint"}
    assert set(re.findall(r"--[a-z][a-z-]+", ENGLISH + KOREAN)) <= known


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {shlex.split(command)[1] for command in commands() if command.startswith("make ")}
    assert named <= targets
    assert {"run", "test"} <= named
