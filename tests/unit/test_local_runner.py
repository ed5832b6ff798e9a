"""What a local run changes about the compiled YAML: nothing but the pip installs."""

import yaml

from pipelines.catalog import compiled_path
from pipelines.local_runner import runnable_here


def test_only_the_pip_installs_are_left_out() -> None:
    text = compiled_path("batch_inference").read_text(encoding="utf-8")
    compiled, runnable = yaml.safe_load(text), yaml.safe_load(runnable_here(text))
    for name, executor in compiled["deploymentSpec"]["executors"].items():
        command = executor["container"]["command"]
        assert "pip install" in command[2]
        executor["container"]["command"] = command[3:]
        assert not any(
            "pip install" in part for part in runnable["deploymentSpec"]["executors"][name]["container"]["command"]
        )
    assert runnable == compiled


def test_platform_settings_in_a_second_document_are_left_out() -> None:
    text = compiled_path("batch_inference").read_text(encoding="utf-8") + "---\nplatforms: {kubernetes: {}}\n"
    assert "platforms" not in yaml.safe_load(runnable_here(text))
