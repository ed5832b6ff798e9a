"""What Kubeflow and what is beneath it can hold, at 512 shards with a long system prompt, and on its older versions.

The figures are from what Kubeflow Pipelines, Argo Workflows and Linux write into their sources.
"""

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.errors import SettingsError
from clients.prompts.check import check_prompts
from clients.prompts.plan import MOST_PODS, shards_of, unpack
from clients.prompts.rows import JobDefaults
from clients.prompts.start import Start
from clients.steps.plan_shards import plan_shards
from clients.steps.secrets import SECRETS
from pipelines.remote.parameters import Package
from tests.contract.argo_nodes import MOST_BYTES, MOST_BYTES_OF_VARIABLE, WINDOW_BYTES, Workflow
from tests.contract.test_compiled import FILES, spec

SHARDS, ROWS = 512, 2_000

SYSTEM_PROMPT = "You are careful and answer in one word. " * 256  # 10 kB

#: The inputs of a task are one value in several places of Kubeflow's.
PARAMETERS_BUDGET = 100_000

#: Linux takes 128 KiB in one argument; a backend adds to what it hands on.
ARGUMENT_BUDGET = 64_000

#: As long as folders of states get: a store for each namespace, and long names.
LONG_STATE = (
    "minio://mlpipeline/private-artifacts/kubeflow-user-example-com/v2/artifacts/"
    "batch-inference/state/0123456789abcdef/0001"
)

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], bytes]:
    """The strings and the artifact of a real plan of 512 shards; its state is as far away as one in a cluster."""
    folder = tmp_path_factory.mktemp("plan")
    root = tmp_path_factory.getbasetemp()
    state = f"{root}/{'s' * (len(LONG_STATE) - len(str(root)) - 1)}"
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"row {row}"}) + "\n" for row in range(ROWS)), encoding="utf-8")
    checked = check_prompts(str(prompts), JobDefaults(system_prompt=SYSTEM_PROMPT))
    start = Start(
        run="0" * 36,
        prompts=str(prompts),
        state=state,
        kept=True,
        job="0" * 16,
        defaults=JobDefaults(system_prompt=SYSTEM_PROMPT),
    )
    (folder / "checked").write_bytes(start.to_json() + b"\n" + checked.to_json())
    specs = plan_shards(
        checked_path=str(folder / "checked"),
        endpoint=json.dumps({"base_url": "http://batch-inference-0123456789ab.ml.svc/v1", "model": "m"}),
        shards=SHARDS,
        concurrency=4096,
        server_wait_s=600,
        options={"max_error_rate": 0.2},
        plan_path=str(folder / "plan"),
    )
    return specs, (folder / "plan").read_bytes()


def test_the_strings_of_512_shards_are_one_small_parameter(planned: tuple[list[str], bytes]) -> None:
    specs, _ = planned
    assert len(specs) == MOST_PODS
    assert len(json.dumps(specs)) <= PARAMETERS_BUDGET
    assert max(map(len, specs)) <= 1000


def test_each_string_leads_to_its_shard_and_the_artifact_to_all(planned: tuple[list[str], bytes]) -> None:
    specs, plan = planned
    shards = unpack(plan.partition(b"\n")[2])
    for pod in (0, 7, MOST_PODS - 1):
        assert shards_of(specs[pod]) == shards[pod::MOST_PODS]
    assert sum(shard.rows for shard in shards) == ROWS
    assert {shard.concurrency for shard in shards} == {4096 // MOST_PODS}
    assert all(shard.defaults.system_prompt == SYSTEM_PROMPT for shard in shards)


def test_the_artifact_holds_a_long_prompt_once(planned: tuple[list[str], bytes]) -> None:
    assert len(planned[1]) <= 150_000


def test_what_a_shard_s_pod_is_told_is_one_small_argument(planned: tuple[list[str], bytes]) -> None:
    specs, _ = planned
    told = {"inputs": {"parameterValues": {"spec": specs[-1], "store_endpoint": "x" * 100}}, "outputs": {}}
    assert len(json.dumps(told)) <= ARGUMENT_BUDGET


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_largest_run_stays_below_what_argo_takes(path: Path) -> None:
    """As many pods as there are, an inline file and a system prompt that take all that arguments may have."""
    package = Package.named(path.stem)
    inline = base64.b64encode(random.Random(0).randbytes(package.most_inline * 3 // 4)).decode()
    given = {"prompts": inline, "endpoint_url": "http://vllm.ml/v1"}
    left = package.most_bytes - len(json.dumps({**given, "system_prompt": ""}))
    given["system_prompt"] = (3 * SYSTEM_PROMPT)[:left]
    package.check(given)
    with pytest.raises(SettingsError, match="more than the"):
        package.check(given | {"system_prompt": "and " + given["system_prompt"]})
    assert Workflow(path, pods=MOST_PODS, given=given).bytes() <= 0.96 * MOST_BYTES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("parameter", ["prompts", "system_prompt", "template"])
def test_what_a_pod_is_told_fits_into_a_variable(path: Path, parameter: str) -> None:
    package = Package.named(path.stem)
    given = {"prompts": "s3://bucket/prompts.jsonl", "endpoint_url": "http://vllm.ml/v1"}
    given[parameter] = "Answer in one word, please. " * (package.most_bytes // 29)
    package.check(given)
    assert Workflow(path, pods=1, given=given).longest_variable() <= 0.95 * MOST_BYTES_OF_VARIABLE


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_two_copies_of_a_step_s_code_are_near_enough_to_be_compressed_to_one(path: Path) -> None:
    found = dict(Workflow(path, pods=1, given={"system_prompt": "Answer in one word."}).distances())
    assert found.keys() >= {"check-prompts-driver", "stores-code-driver", "engine-code-driver", "plan-shards-driver"}
    assert {step: distance for step, distance in found.items() if distance > WINDOW_BYTES - 1_000} == {}


def unknown(node: Any, known: set[str], free: tuple[str, ...]) -> set[str]:
    """Field names that are not among those known; what stands below the names in `free` has names of people's own."""
    if isinstance(node, list):
        return {name for one in node for name in unknown(one, known, free)}
    if not isinstance(node, dict):
        return set()
    found: set[str] = set()
    for name, value in node.items():
        if name not in known:
            found.add(name)
        if name in free and isinstance(value, dict):
            found |= {inner for one in value.values() for inner in unknown(one, known, free)}
        elif name not in ("defaultValue", "constant"):
            found |= unknown(value, known, free)
    return found


#: Below these fields stand names of steps, parameters and artifacts.
_MAPS = ("components", "executors", "tasks", "parameters", "artifacts", "platforms", "outputParameters")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_field_of_the_pipeline_is_known_to_the_api_server_of_2_14(path: Path) -> None:
    known = set(json.loads((DATA / "pipeline_fields_2_14.json").read_text(encoding="utf-8"))["pipeline"])
    assert unknown(spec(path), known, _MAPS) == set()
    assert unknown({"pipelineInfo": {"newField": 1}}, known, _MAPS) == {"newField"}


def platform(path: Path) -> dict[str, Any]:
    _, second = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = second["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_field_for_kubernetes_is_known_to_the_driver_of_2_14(path: Path) -> None:
    """It refuses `secretAsEnv.optional` (kubeflow/pipelines #12495), but takes `secretAsVolume.optional`."""
    known = json.loads((DATA / "pipeline_fields_2_14.json").read_text(encoding="utf-8"))["kubernetes"]
    for step, config in platform(path).items():
        assert config.keys() <= known.keys(), step
        for field, inner in config.items():
            for one in inner if isinstance(inner, list) else [inner]:
                if not isinstance(one, dict):
                    continue  # activeDeadlineSeconds is a number
                assert one.keys() <= set(known[field]), (step, field)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_pod_is_found_by_a_label(path: Path) -> None:
    label = {"app.kubernetes.io/part-of": "kubeflow-llm-inference"}
    assert {step: config["podMetadata"]["labels"] for step, config in platform(path).items()} == dict.fromkeys(
        spec(path)["deploymentSpec"]["executors"], label
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_autoscalers_are_asked_to_leave_the_nodes_of_long_steps_alone(path: Path) -> None:
    asked = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    long = {step for step, config in platform(path).items() if config["podMetadata"].get("annotations") == asked}
    assert long >= {"exec-check-prompts", "exec-run-shard", "exec-finish-shards", "exec-merge-shards"}
    assert all("annotations" not in platform(path)[step]["podMetadata"] for step in platform(path).keys() - long)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_pod_starts_without_any_of_its_secrets(path: Path) -> None:
    for step, config in platform(path).items():
        mounts = config.get("secretAsVolume", [])
        assert all(one["optional"] for one in mounts), step
        assert len({one["mountPath"] for one in mounts}) == len(mounts), step
        assert {Path(one["mountPath"]).name for one in mounts} <= SECRETS.keys(), step


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_names_of_secrets_are_parameters_of_the_pipeline_around_the_step(path: Path) -> None:
    around = {
        task["componentRef"]["name"]: set(component.get("inputDefinitions", {}).get("parameters", {}))
        for component in [spec(path)["root"], *spec(path)["components"].values()]
        for task in component.get("dag", {}).get("tasks", {}).values()
    }
    for step, config in platform(path).items():
        for one in config.get("secretAsVolume", []):
            name = one["secretNameParameter"].get("componentInputParameter")
            assert name is None or name in around[f"comp-{step.removeprefix('exec-')}"], (step, name)
