"""The image of the steps and what the compiled pipelines install: the same packages, so that pip has nothing to do."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from components._factory import IMAGE
from pipelines.catalog import COMPILED

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")

#: Python that pods run; the tests may run on a newer one.
POD = {"python_version": "3.11", "python_full_version": "3.11.14", "sys_platform": "linux", "platform_system": "Linux"}


def preludes() -> dict[str, str]:
    """The shell program that begins each step, by step."""
    return {
        f"{path.stem}-{name}": executor["container"]["command"][2]
        for path in COMPILED.glob("*.yaml")
        for name, executor in next(yaml.safe_load_all(path.read_text()))["deploymentSpec"]["executors"].items()
    }


PRELUDES = preludes()


def versions(prelude: str) -> dict[str, str]:
    """Canonical name and version of each package that a step installs."""
    return {canonicalize_name(name): version for name, version in re.findall(r"'([\w.-]+)==([^']+)'", prelude)}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==")[::2] for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def in_the_image() -> dict[str, str]:
    """What the Dockerfile installs; its versions are those of the constraints."""
    joined = re.sub(r"#.*\n", "", DOCKERFILE).replace("\\\n", " ")
    (command,) = re.findall(r"pip install (.*)", joined)
    words = shlex.split(command)
    assert {"--no-deps", "--constraint"} <= set(words)
    after = words[words.index("--constraint") + 2 :]
    return {canonicalize_name(name): constraints()[canonicalize_name(name)] for name in after}


def test_the_image_has_every_package_of_every_step_at_that_version_and_no_other() -> None:
    wanted = {name: version for prelude in PRELUDES.values() for name, version in versions(prelude).items()}
    assert {"kfp", "pyarrow", "lightkube", "orjson"} <= set(wanted)
    assert in_the_image() == wanted


def test_the_image_is_built_on_the_one_that_steps_run_in_without_it_and_is_not_root() -> None:
    assert re.findall(r"^FROM (\S+)$", DOCKERFILE, flags=re.MULTILINE) == [IMAGE]
    users = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, flags=re.MULTILINE)
    assert len(users) == 1
    assert int(users[0][0]) >= 1000
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = re.findall(r"^COPY (\S+) ", DOCKERFILE, flags=re.MULTILINE)
    assert [line for line in ignored if line.startswith("!")] == [f"!{name}" for name in copied]
    assert ignored.index("*") < ignored.index(f"!{copied[0]}")


@pytest.mark.parametrize("name", PRELUDES)
def test_a_step_installs_all_that_its_packages_need(name: str) -> None:
    """Pip does not look for it (--no-deps). Of kfp only the part is used that needs nothing."""
    wanted = versions(PRELUDES[name])
    extras = {"httpx2": {"http2", "ws"}, "httpcore2": {"asyncio", "http2"}}
    for package, version in wanted.items():
        if package == "kfp":
            continue
        assert importlib.metadata.version(package) == version
        for text in importlib.metadata.requires(package) or []:
            needed = Requirement(text)
            asked = [{**POD, "extra": extra} for extra in ("", *extras.get(package, ()))]
            if needed.marker is not None and not any(needed.marker.evaluate(extra) for extra in asked):
                continue
            found = wanted.get(canonicalize_name(needed.name))
            assert found is not None, f"{package} needs {text}"
            assert needed.specifier.contains(found), f"{package} needs {text}, found {found}"


@pytest.mark.parametrize("prelude", sorted(set(PRELUDES.values())), ids=lambda text: str(len(text)))
def test_where_the_packages_are_a_step_begins_without_an_index(prelude: str, tmp_path: Path) -> None:
    """This interpreter has them all, as the image does; whatever pip would have to fetch ends the step."""
    assert prelude.count("-m pip") == 1
    alone = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_NO_CACHE_DIR": "1",
    }
    done = subprocess.run(
        ["/bin/sh", "-c", prelude, "echo", "begun"], env=alone, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "begun"), done.stderr
    more = prelude.replace("'kfp==", "'no-such-package-of-ours==1.0' 'kfp==")
    done = subprocess.run(
        ["/bin/sh", "-c", more, "echo", "begun"], env=alone, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "no-such-package-of-ours" in done.stderr


def test_the_image_can_sweep(tmp_path: Path) -> None:
    """With the folder that it copies and the packages that it has, and nothing else of the project."""
    (tmp_path / "clients").symlink_to(ROOT / "clients")
    absent = ["pandas", "rich", "aiohttp", "openai", "langfuse"]
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({absent})); sys.argv[1:] = ['sweep', '--help']; "
    code += "runpy.run_module('clients.serving', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, "--dry-run" in done.stdout) == (0, True), done.stderr
