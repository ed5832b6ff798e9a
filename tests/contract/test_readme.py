"""The pages and their Korean twins are parallel, and what they say is what the code does."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clients.batch.options import RunOptions
from clients.fake_vllm.faults import KINDS
from clients.records import Outcome
from clients.results.schema import COLUMNS
from clients.results.verdict import judge
from pipelines.remote.parameters import Package

ROOT = Path(__file__).resolve().parents[2]


def page(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


#: Each page and its Korean twin.
TWINS = {
    "README.md": "README_ko.md",
    **{
        f"docs/{name}.md": f"docs/{name}_ko.md"
        for name in (
            "engine",
            "formats",
            "glossary",
            "kubeflow",
            "laptop",
            "parameters",
            "serving",
            "tracing",
            "troubleshooting",
        )
    },
}
#: A longer README is not read to its end: what is depth stands in docs/.
MOST_LINES = 215
ENGLISH, KOREAN = page("README.md"), page("README_ko.md")
FORMATS_ENGLISH, FORMATS_KOREAN = page("docs/formats.md"), page("docs/formats_ko.md")
ENGINE_ENGLISH, ENGINE_KOREAN = page("docs/engine.md"), page("docs/engine_ko.md")
SERVING_ENGLISH, SERVING_KOREAN = page("docs/serving.md"), page("docs/serving_ko.md")
PARAMETERS_ENGLISH, PARAMETERS_KOREAN = page("docs/parameters.md"), page("docs/parameters_ko.md")
TROUBLES_ENGLISH, TROUBLES_KOREAN = page("docs/troubleshooting.md"), page("docs/troubleshooting_ko.md")
ALL_ENGLISH, ALL_KOREAN = "".join(map(page, TWINS)), "".join(map(page, TWINS.values()))

#: Words in messages that are passed on as the cluster, vLLM or Hugging Face said them.
FROM_THE_CLUSTER = {"gpu", "nvidia", "com", "Client", "Error", "CUDA", "memory", "unrecognized", "arguments"}

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


def commands(text: str) -> list[str]:
    """The lines of the shell blocks, and what stands as a command of make within a sentence."""
    lines = [line for block in code_blocks(text) if block.startswith("```sh") for line in block.splitlines()[1:-1]]
    return lines + re.findall(r"`(make [^`\n]+)`", text)


def help_of(*command: str) -> str:
    """All that a command's help tells, on one screen or on several."""
    found = ""
    for flag in ("--help", "--help-all"):
        if flag == "--help" or "--help-all" in found:
            words = [sys.executable, *command, flag]
            found += subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return found


def flags(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", text))


@pytest.mark.parametrize("english", TWINS)
def test_both_have_the_same_headings_tables_and_code(english: str) -> None:
    one, other = page(english), page(TWINS[english])
    assert headings(one) == headings(other)
    assert tables(one) == tables(other)
    assert code_blocks(one) == code_blocks(other)


@pytest.mark.parametrize("text", [ENGLISH, KOREAN])
def test_the_readme_is_short_enough_to_read(text: str) -> None:
    assert text.count("\n") <= MOST_LINES


def test_the_messages_of_the_readme_stand_in_full_on_the_page_of_troubles() -> None:
    for message in messages(ENGLISH):
        assert any(full.startswith(message.rstrip(" …")) for full in messages(TROUBLES_ENGLISH)), message


def test_both_languages_name_the_same_messages() -> None:
    assert messages(ENGLISH) == messages(KOREAN)
    assert messages(TROUBLES_ENGLISH) == messages(TROUBLES_KOREAN)


def test_every_page_has_a_twin() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert pages | {"README.md", "README_ko.md"} == {*TWINS, *TWINS.values()}


@pytest.mark.parametrize(("text", "header"), [(FORMATS_ENGLISH, "column"), (FORMATS_KOREAN, "열")])
def test_the_columns_are_those_of_the_schema(text: str, header: str) -> None:
    assert first_cells(text, header)[:-1] == COLUMNS.names


@pytest.mark.parametrize("text", [ENGLISH, KOREAN, FORMATS_ENGLISH, FORMATS_KOREAN])
def test_the_outcomes_are_those_of_the_code(text: str) -> None:
    named = [name.strip(" `") for cell in first_cells(text, "outcome") for name in cell.split(",")]
    assert named == [outcome.value for outcome in Outcome]


@pytest.mark.parametrize("text", [ENGINE_ENGLISH, ENGINE_KOREAN])
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
    emitted = set(re.findall(r'emit\(\s*logger,\s*"([a-z_.]+)"', sources))
    assert set(first_cells(text, header)) == emitted


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_a_command_fits_on_a_screen(command: tuple[str, ...]) -> None:
    words = [sys.executable, *command, "--help"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(found) <= 66
    assert max(map(len, found)) <= 120


def test_every_flag_named_exists() -> None:
    known = flags("".join(help_of(*command) for command in COMMANDS))
    others = {"--constraint", "--from-literal", "--previous", "--enable-expert-parallel"}  # of pip, kubectl and vLLM
    assert flags(ALL_ENGLISH + ALL_KOREAN) <= known | others


@pytest.mark.parametrize(("text", "header"), [(SERVING_ENGLISH, "cause"), (SERVING_KOREAN, "원인")])
def test_the_causes_are_those_of_the_diagnosis(text: str, header: str) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "clients/serving").glob("*.py"))
    named = {name.strip(" `") for cell in first_cells(text, header) for name in cell.split(",")}
    probes = {"startup_probe", "liveness_probe"}  # put together in the code
    assert named - set(re.findall(r"[a-z_]+", sources)) - probes == set()
    emitted = set(re.findall(r'(?:Cause\(\s*kind=|_known\(\s*|kind=)"([a-z_]+)"', sources))
    assert emitted | probes <= named


@pytest.mark.parametrize(
    "command",
    [("clients.batch",), ("pipelines.run",), ("pipelines.run", "--host", "x"), ("pipelines.schedule", "create")],
)
def test_every_flag_of_a_run_is_documented(command: tuple[str, ...]) -> None:
    assert flags(help_of("-m", *command)) - {"--help", "--help-all"} <= flags(ALL_ENGLISH)


@pytest.mark.parametrize("text", [PARAMETERS_ENGLISH, PARAMETERS_KOREAN])
def test_the_parameters_and_options_are_those_of_the_pipelines_with_their_defaults(text: str) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    named = {name: row for row in rows for name in re.findall(r"`([a-z_]+)`", row[0])}
    inputs = {**Package.named("batch_client").inputs, **Package.named("batch_inference").inputs}
    inner = {"max_error_rate", "deadline", "run_url", "resumes"}  # set by a parameter, or by the submission
    options = {field.name for field in dataclasses.fields(RunOptions)} - inner
    assert set(named) == set(inputs) | options
    for name, definition in inputs.items():
        default = definition.get("defaultValue", "")
        shown = json.dumps(default) if not isinstance(default, str) else default
        said = " ".join(named[name][-3:-1])
        assert not shown or shown.removesuffix(".0") in said, (name, shown, said)


def messages(text: str) -> list[str]:
    """What the tables of troubles say that the software prints."""
    found = re.findall(r"\n\| (?:what is printed|출력되는 메시지) \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    return [line.split("|")[1].strip().strip("`") for table in found for line in table.splitlines()]


@pytest.mark.parametrize(("text", "least"), [(ENGLISH, 3), (KOREAN, 3), (TROUBLES_ENGLISH, 11), (TROUBLES_KOREAN, 11)])
def test_the_messages_of_the_troubleshooting_table_are_those_of_the_software(text: str, least: int) -> None:
    assert len(messages(text)) >= least
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "clients").rglob("*.py")))
    said = re.sub(r'"\s*\n\s*f?"', "", sources)  # a message that goes on in the next line
    for message in messages(text):
        for part in filter(None, (part.strip(" .:") for part in message.split("…"))):
            words = [word for word in re.split(r"[^A-Za-z_'-]+", part) if len(word) > 3]
            assert [word for word in words if word not in said and word not in FROM_THE_CLUSTER] == [], message


def test_the_names_of_secrets_are_the_defaults_of_the_pipeline() -> None:
    inputs = Package.named("batch_client").inputs
    defaults = {definition["defaultValue"] for name, definition in inputs.items() if name.endswith("_secret")}
    assert set(re.findall(r"create secret generic (\S+)", page("docs/kubeflow.md"))) == defaults


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    everywhere = {shlex.split(command)[1] for command in commands(ALL_ENGLISH) if command.startswith("make ")}
    assert everywhere <= targets
    assert {"run", "test"} <= {shlex.split(command)[1] for command in commands(ENGLISH) if command.startswith("make ")}


@pytest.mark.parametrize("name", [*TWINS, *TWINS.values(), "CONTRIBUTING.md"])
def test_every_link_to_a_file_leads_there(name: str) -> None:
    links = re.findall(r"(?:\]\(|src(?:set)?=\")([^)#\"]+)", page(name))
    assert [link for link in links if "://" not in link and not ((ROOT / name).parent / link).exists()] == []


@pytest.mark.parametrize("name", [*TWINS, *TWINS.values()])
def test_every_link_to_a_heading_leads_there(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page(name)):
        found = page(((ROOT / name).parent / target).resolve().relative_to(ROOT).as_posix()) if target else page(name)
        titles = re.findall(r"^#+ (.+)$", found, flags=re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], anchor
