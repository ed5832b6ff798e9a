"""Arguments are compared with the compiled pipeline before anything is sent; files become what pods can read."""

import base64
import gzip
import os
import random
from pathlib import Path
from typing import Any

import pytest

from clients.errors import PromptsError, SettingsError
from pipelines.remote.parameters import Package, packages, title_of, whole
from pipelines.remote.staging import described, inline, staged

CLIENT = Package.named("batch_client")
WHOLE = Package.named("batch_inference")
NEEDED = {"prompts": "s3://b/p.jsonl", "endpoint_url": "http://vllm.ml/v1"}


def test_the_compiled_pipelines_are_known_by_their_titles() -> None:
    assert packages() == {CLIENT.title: CLIENT.name, WHOLE.title: WHOLE.name}
    assert title_of(CLIENT.spec) == "batch-client"
    assert title_of({"pipeline_spec": CLIENT.documents[0], "platform_spec": {}}) == "batch-client"
    assert title_of({}) == ""
    with pytest.raises(SettingsError, match=r"python -m pipelines\.compile"):
        Package.named("nothing")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("replicas", "4", 4),
        ("lease_hours", "3", 3),
        ("lease_hours", "0.5", 0.5),
        ("model_id", "4", "4"),
        ("options", '{"retry": "truncated"}', {"retry": "truncated"}),
        ("tolerations", "[]", []),
    ],
)
def test_a_set_is_read_by_the_type_of_its_parameter(name: str, text: str, value: Any) -> None:
    assert WHOLE.read(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("replicas", "four", "--set replicas=four: expected a whole number"),
        ("replicas", "4.5", "expected a whole number"),
        ("replicas", "true", "expected a whole number"),
        ("options", "[1]", "expected a JSON object"),
        ("tolerations", "{", "expected a JSON list"),
        ("replicsa", "4", "has no parameter 'replicsa'. Did you mean replicas?"),
        ("zzzzzz", "4", "has no parameter 'zzzzzz'. It takes after_run, "),
    ],
)
def test_a_set_that_cannot_be_used_is_said_with_the_mend(name: str, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        WHOLE.read(name, text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (NEEDED | {"shards": "4"}, "batch_client: shards is '4'; expected a whole number"),
        (NEEDED | {"shard": 4}, "Did you mean shards?"),
        ({"prompts": "p"}, "batch_client needs endpoint_url. Give --url"),
        ({"endpoint_url": "u"}, "batch_client needs prompts. Give --prompts"),
        (NEEDED | {"template": "x" * 200_000}, "the largest is template"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        CLIENT.check(arguments)
    assert message in str(caught.value)


def test_arguments_that_fit_pass() -> None:
    CLIENT.check(NEEDED)
    CLIENT.check(NEEDED | {"shards": 8, "max_error_rate": 1, "options": {}})


def test_whole_numbers_come_back_whole() -> None:
    assert whole({"a": 4.0, "b": {"c": [1.0, 0.5]}, "d": "4.0"}) == {"a": 4, "b": {"c": [1, 0.5]}, "d": "4.0"}


#: Most characters of an inline file here.
MOST = CLIENT.most_inline


class TestStaging:
    @pytest.mark.parametrize(
        ("name", "head"),
        [("p.jsonl", "inline:jsonl:"), ("p.csv", "inline:csv:"), ("p.TSV", "inline:tsv:"), ("p.txt", "inline:")],
    )
    def test_a_small_file_travels_inline_with_its_format(self, tmp_path: Path, name: str, head: str) -> None:
        (tmp_path / name).write_text('{"prompt": "안녕"}\n' if "j" in name else "prompt\thi,there\n1\t2\n")
        text = staged(str(tmp_path / name), "", CLIENT, say=print)
        assert text.startswith(head)
        packed = text.rpartition(":")[2]
        assert gzip.decompress(base64.b64decode(packed)) == (tmp_path / name).read_bytes()
        assert inline(tmp_path / name, MOST) == text  # the same content gives the same argument
        assert described(text) == f"inline, {len(text)} characters"

    def test_a_large_file_is_uploaded_once_for_its_content(self, tmp_path: Path) -> None:
        path, said = self.large(tmp_path), list[str]()
        store = f"file://{tmp_path}/store"
        uri = staged(str(path), store, CLIENT, say=said.append)
        assert uri.startswith(store)
        assert uri.endswith("/p.jsonl")
        assert Path(uri.removeprefix("file://")).read_bytes() == path.read_bytes()
        assert staged(str(path), store, CLIENT, say=said.append) == uri
        assert [line.split()[0] for line in said] == ["Uploading", uri]
        path.write_text(path.read_text() + '{"prompt": "more"}\n')
        assert staged(str(path), store, CLIENT, say=said.append) != uri

    def test_without_staging_both_mends_are_said(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError) as caught:
            staged(str(self.large(tmp_path)), "", CLIENT, say=print)
        assert "--staging s3://bucket/folder" in str(caught.value)
        assert "--prompts s3://" in str(caught.value)
        with pytest.raises(SettingsError, match="pods cannot read this machine's folders"):
            staged(str(tmp_path / "p.jsonl"), str(tmp_path), CLIENT, say=print)

    def test_addresses_pass_as_they_are(self) -> None:
        for address in ("s3://b/{date}/p.jsonl", "minio://b/p", "inline:csv:abc", "https://host/p.csv"):
            assert staged(address, "", CLIENT, say=print) == address

    @pytest.mark.parametrize("content", [b"", b'[{"prompt": "a"}]', b"\x1f\x8bxx"])
    def test_what_is_no_file_of_prompts_is_refused_before_it_travels(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "p.jsonl").write_bytes(content)
        with pytest.raises(PromptsError):
            staged(str(tmp_path / "p.jsonl"), "", CLIENT, say=print)

    def test_what_is_no_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="--volume CLAIM:/mnt"):
            staged("/mnt/none.jsonl", "", CLIENT, say=print)
        with pytest.raises(PromptsError, match="is a folder"):
            staged(str(tmp_path), "", CLIENT, say=print)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(SettingsError, match="is no file"):
            staged(str(tmp_path / "pipe"), "", CLIENT, say=print)

    def large(self, tmp_path: Path) -> Path:
        words = random.Random(7)
        lines = [f'{{"prompt": "{words.getrandbits(256):x}"}}' for _ in range(2000)]
        path = tmp_path / "p.jsonl"
        path.write_text("\n".join(lines) + "\n")
        assert inline(path, MOST) is None
        assert path.stat().st_size > MOST
        return path
