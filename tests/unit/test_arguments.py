import argparse
from pathlib import Path

import pytest

from clients.batch.arguments import (
    add_input_arguments,
    add_policy_arguments,
    add_run_arguments,
    check_run_arguments,
    earlier_folders,
    output_folder,
    template_of,
)
from clients.errors import SettingsError


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_input_arguments(parser)
    add_run_arguments(parser)
    add_policy_arguments(parser)
    return parser.parse_args(["-i", "data/p.v2.jsonl.gz", *flags])


@pytest.mark.parametrize(
    ("flags", "template"),
    [((), ""), (("--template", "a {b}"), "a {b}"), (("--prompt-column", "my text"), "{my text}")],
)
def test_a_column_is_a_short_form_of_a_template(flags: tuple[str, ...], template: str) -> None:
    assert template_of(parsed(*flags)) == template


@pytest.mark.parametrize("flags", [("--template", "a"), ("--prompt-column", "}")])
def test_a_template_that_cannot_be_used_is_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError):
        template_of(parsed(*flags))


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ((), "results/p"),
        (("--output", "mine", "-o", "x/out.jsonl"), "mine"),
        (("-o", "x/out.v2.jsonl"), "x/out.v2.run"),
        (("-o", "out"), "out.run"),
        (("-o", "out.run"), "out.run.run"),
    ],
)
def test_results_lie_where_they_are_told_to_or_beside_the_batch_file(flags: tuple[str, ...], folder: str) -> None:
    assert output_folder(parsed(*flags)) == Path(folder)


@pytest.mark.parametrize("path", ["earlier", "earlier/results.parquet"])
def test_an_earlier_run_is_looked_for_where_lengths_come_from_first(path: str) -> None:
    assert earlier_folders(parsed("--lengths-from", path)) == (Path("earlier"), Path("results/p"))
    assert earlier_folders(parsed()) == (Path("results/p"),)


@pytest.mark.parametrize("flag", ["--concurrency", "--server-wait", "--gpus"])
def test_numbers_are_at_least_zero(flag: str) -> None:
    check_run_arguments(parsed(flag, "0"))
    with pytest.raises(SettingsError, match=f"{flag} must be at least 0, found -1"):
        check_run_arguments(parsed(flag, "-1"))


def test_a_batch_file_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/p.v2.jsonl.gz").touch()
    check_run_arguments(parsed("-o", "out.jsonl"))
    for target, words in (
        ("data/../data/p.v2.jsonl.gz", "is the file of the prompts"),
        ("data", "is a folder"),
        ("nowhere/out", "there is no folder nowhere"),
    ):
        with pytest.raises(SettingsError, match=words):
            check_run_arguments(parsed("-o", target))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SettingsError, match="cannot be written"):
        check_run_arguments(parsed("-o", "out.jsonl"))
