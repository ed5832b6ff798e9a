"""What a pod's Secrets stand for, as Kubernetes puts them into folders."""

import subprocess
import sys
from pathlib import Path

from clients.steps.secrets import mounted


def put(root: Path, folder: str, key: str, value: str | bytes) -> None:
    path = root / folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value if isinstance(value, bytes) else value.encode())


def test_each_known_key_stands_for_its_variable_and_others_for_none(tmp_path: Path) -> None:
    put(tmp_path, "artifact-store", "accesskey", "minio")
    put(tmp_path, "artifact-store", "secretkey", "minio123\n")
    put(tmp_path, "storage", "AWS_ACCESS_KEY_ID", "AKIA")
    put(tmp_path, "endpoint", "OPENAI_API_KEY", "sk 1 ")
    put(tmp_path, "endpoint", "AWS_REGION", "nowhere")
    put(tmp_path, "langfuse", "PATH", "/evil")
    assert mounted(str(tmp_path)) == {
        "KLLM_STORE_ACCESS_KEY": "minio",
        "KLLM_STORE_SECRET_KEY": "minio123",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "OPENAI_API_KEY": "sk 1 ",
    }


def test_what_is_absent_empty_or_no_text_stands_for_nothing(tmp_path: Path) -> None:
    assert mounted(str(tmp_path / "none")) == {}
    put(tmp_path, "endpoint", "OPENAI_API_KEY", "\n")
    put(tmp_path, "langfuse", "LANGFUSE_HOST", b"\xff\xfe")
    (tmp_path / "storage/AWS_REGION").mkdir(parents=True)
    assert mounted(str(tmp_path)) == {}


def test_a_step_has_them_as_variables_unless_they_are_set_and_tells_none(tmp_path: Path) -> None:
    put(tmp_path, "endpoint", "OPENAI_API_KEY", "from-a-file")
    put(tmp_path, "langfuse", "LANGFUSE_SECRET_KEY", "from-a-file")
    code = f"""
import functools, os
from clients.steps import boundary, secrets
boundary.mounted = functools.partial(secrets.mounted, {str(tmp_path)!r})
with boundary.step("x"):
    print(boundary.api_key(), os.environ["LANGFUSE_SECRET_KEY"])
"""
    environment = {"OPENAI_API_KEY": "", "LANGFUSE_SECRET_KEY": "set", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "from-a-file set\n"
    assert "from-a-file" not in done.stderr
