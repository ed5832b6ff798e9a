"""What a local run changes about the compiled YAML: nothing but what only pods need."""

import yaml

from pipelines.catalog import compiled_path
from pipelines.local_runner import runnable_here


def test_only_pip_installs_images_and_retries_are_left_out_and_the_loop_may_fail() -> None:
    text = compiled_path("batch_inference").read_text(encoding="utf-8")
    compiled, runnable = next(yaml.safe_load_all(text)), yaml.safe_load(runnable_here(text))
    retried, unmoved = 0, []
    for name, executor in compiled["deploymentSpec"]["executors"].items():
        command = executor["container"]["command"]
        assert "pip install" in command[2]
        executor["container"]["command"] = command[3:]
        executor["container"]["image"] = "python"
        assert not any(
            "pip install" in part for part in runnable["deploymentSpec"]["executors"][name]["container"]["command"]
        )
    for component in [compiled["root"], *compiled["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            retried += task.pop("retryPolicy", None) is not None
            if task.get("dependentTasks") == ["for-loop-1"]:
                unmoved.append(task["taskInfo"]["name"])
                task["triggerPolicy"] = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert retried == 5
    assert unmoved == ["Finish shards"]  # here it runs whatever became of the shards, since none is tried again
    assert runnable == compiled


def test_platform_settings_in_a_second_document_are_left_out() -> None:
    text = compiled_path("batch_inference").read_text(encoding="utf-8")
    assert "platforms" in list(yaml.safe_load_all(text))[1]
    assert "platforms" not in yaml.safe_load(runnable_here(text))
