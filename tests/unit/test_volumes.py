"""Volumes of the cluster in the pods: what is asked for, and what becomes of the compiled pipeline."""

from pathlib import Path

import pytest
import yaml

from clients.errors import SettingsError
from pipelines.compile import main as compile_main
from pipelines.remote.parameters import Package
from pipelines.remote.staging import staged
from pipelines.volumes import Volume, parse_volumes, volumes_of

DATA = Volume("shared-data", "/data")

#: The steps that read or write files of a run.
WITH_FILES = {"check-prompts", "plan-shards", "run-shard", "finish-shards", "merge-shards"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shared-data", "expected CLAIM:FOLDER"),
        ("shared-data:data", "expected CLAIM:FOLDER"),
        ("Shared:/data", "at most 63 of a-z, 0-9 and -"),
        ("shared.data:/data", "at most 63 of a-z, 0-9 and -"),
        (":/data", "expected CLAIM:FOLDER"),
        ("shared-data:/", "pods need / for themselves"),
        ("shared-data:/tmp/x", "pods need /tmp/x for themselves"),
        ("shared-data:/data/../etc", "for themselves"),
        ("shared-data:/bin", "pods need /bin for themselves"),
        ("shared-data:/.cache", "pods need /.cache for themselves"),
        ("shared-data://data", "expected CLAIM:FOLDER"),
        ("shared-data:/data:ro", "expected CLAIM:FOLDER"),
    ],
)
def test_what_is_no_volume_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_volumes([text])
    assert message in str(caught.value)


@pytest.mark.parametrize("texts", [["a:/data", "a:/other"], ["a:/data", "b:/data/"]])
def test_one_claim_and_one_folder_go_together(texts: list[str]) -> None:
    with pytest.raises(SettingsError, match="is there twice"):
        parse_volumes(texts)


@pytest.mark.parametrize("name", ["batch_client", "batch_inference"])
def test_steps_with_files_mount_it_and_nothing_else_changes(name: str) -> None:
    plain, mounting = Package.named(name), Package.named(name).mounting((DATA, Volume("more", "/more")))
    assert mounting.documents[0] == plain.documents[0]
    assert mounting.digest != plain.digest
    before = plain.documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    after = mounting.documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {step.removeprefix("exec-") for step in after if "pvcMount" in after[step]} == WITH_FILES
    for step, config in after.items():
        mounts = config.pop("pvcMount", [])
        assert config == before[step]
        assert [(mount["constant"], mount["mountPath"]) for mount in mounts] in (
            [],
            [("shared-data", "/data"), ("more", "/more")],
        )
    assert b"&id" not in mounting.data  # no reference that another reader may not know


def test_they_are_found_again_in_what_a_server_gives_back() -> None:
    package = Package.named("batch_client").mounting((DATA,))
    assert volumes_of(package.spec) == (DATA,)
    assert volumes_of(Package.named("batch_client").spec) == ()
    assert volumes_of({}) == ()


def test_without_volumes_the_file_is_as_it_was() -> None:
    package = Package.named("batch_client")
    assert package.mounting(()) == package


def test_prompts_in_a_volume_are_not_looked_for_here() -> None:
    package = Package.named("batch_client").mounting((DATA,))
    assert staged("/data/nightly/prompts.jsonl", "", package, say=print) == "/data/nightly/prompts.jsonl"
    for other in ("/database/prompts.jsonl", "/data/../etc/passwd-of-nobody"):
        with pytest.raises(SettingsError, match="no such file"):
            staged(other, "", package, say=print)


@pytest.mark.slow
def test_files_to_upload_are_written_where_they_are_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_main(["--volume", "shared-data:/data", "--output", str(tmp_path / "upload")]) == 0
    assert f"{tmp_path}/upload/batch_client.yaml written" in capsys.readouterr().out
    for name in ("batch_client", "batch_inference"):
        written = (tmp_path / f"upload/{name}.yaml").read_bytes()
        assert written == Package.named(name).mounting((DATA,)).data
        assert len(list(yaml.safe_load_all(written))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--volume", "shared-data:/data"], "say where to write them: --output DIR"),
        (["--check", "--output", "x"], "leave out --output"),
        (["--volume", "shared-data", "--output", "x"], "expected CLAIM:FOLDER"),
    ],
)
def test_what_compile_cannot_do_is_said(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        compile_main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
