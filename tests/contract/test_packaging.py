"""What `pip install .` ships."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def declared_packages() -> set[str]:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (found,) = (
        k.value for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords if k.arg == "packages"
    )
    return set(ast.literal_eval(found))


def test_setup_names_every_package_and_no_test() -> None:
    folders = {
        path.parent.relative_to(ROOT)
        for folder in ("clients", "components", "pipelines")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert declared_packages() == {".".join(folder.parts) for folder in folders} | {"compiled"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project installed into a folder of its own, away from its source, as pip does it."""
    target = tmp_path_factory.mktemp("site")
    source = target / "source"  # building leaves files behind; not in the checkout
    for folder in ("clients", "components", "pipelines", "compiled", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(target), str(source)]
    subprocess.run(command, check=True, cwd=target)
    (wheel,) = target.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target / "site")
    return target / "site"


def test_the_wheel_holds_the_compiled_pipelines_and_no_tests(installed: Path) -> None:
    assert (installed / "compiled/batch_inference.yaml").read_bytes() == (
        ROOT / "compiled/batch_inference.yaml"
    ).read_bytes()
    assert not (installed / "tests").exists()


def test_the_wheel_says_its_licence_and_brings_it_along(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    assert "License-Expression: Apache-2.0\n" in metadata.read_text(encoding="utf-8")
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("module", ["pipelines.run", "pipelines.compile", "clients.batch", "clients.query_vllm"])
def test_installed_entry_points_start_from_any_folder(installed: Path, tmp_path: Path, module: str) -> None:
    command = [sys.executable, "-P", "-m", module, "--help"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage: ")


def test_installed_paths_lead_to_the_installed_files(installed: Path, tmp_path: Path) -> None:
    code = "from pipelines.catalog import compiled_path; print(compiled_path('batch_inference'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(installed / "compiled/batch_inference.yaml")
