"""The choices for a service and what becomes of them: pure, without a cluster."""

import dataclasses
import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import SettingsError
from clients.serving import vllm_arguments
from clients.serving.manifest import GPU, inference_service, metrics_service, model_cache, vllm_command_line
from clients.serving.spec import DEFAULT_MODEL, ServingSpec
from tests.servers import crds

DENSE = "meta-llama/Llama-3.1-8B-Instruct"


def predictor(**choices: Any) -> dict[str, Any]:
    found: dict[str, Any] = inference_service(ServingSpec(**choices))["spec"]["predictor"]
    return found


def container(**choices: Any) -> dict[str, Any]:
    found: dict[str, Any] = predictor(**choices)["containers"][0]
    return found


def environment(**choices: Any) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container(**choices)["env"]}


def value(flag: str, **choices: Any) -> str | None:
    words = vllm_command_line(ServingSpec(**choices))
    return words[words.index(flag) + 1] if flag in words else None


class TestDefaults:
    def test_the_guides_shape_is_the_default(self) -> None:
        spec = ServingSpec()
        assert (spec.name, spec.model, spec.replicas, spec.gpus_per_replica, spec.gpus) == (
            "vllm-qwen3-30b-fp8",
            "qwen3-30b-fp8",
            2,
            8,
            16,
        )

    def test_the_throughput_profile_spreads_the_same_gpus(self) -> None:
        spec = ServingSpec(profile="throughput")
        assert (spec.replicas, spec.gpus_per_replica, spec.gpus) == (16, 1, 16)
        assert value("--performance-mode", profile="throughput") == "throughput"

    def test_single_choices_win_over_the_profile(self) -> None:
        spec = ServingSpec(profile="throughput", replicas=3, gpus_per_replica=2)
        assert (spec.replicas, spec.gpus_per_replica, spec.gpus) == (3, 2, 6)

    @pytest.mark.parametrize(
        ("model_id", "served"),
        [(DEFAULT_MODEL, "qwen3-30b-fp8"), (DENSE, "llama-3.1-8b-instruct"), ("/cache/My-Model/", "my-model")],
    )
    def test_a_model_is_served_under_a_short_name(self, model_id: str, served: str) -> None:
        assert ServingSpec(model_id=model_id).model == served
        assert value("--served-model-name", model_id=model_id) == served

    def test_another_model_keeps_its_own_context_length(self) -> None:
        assert value("--max-model-len") == "131072"
        assert value("--max-model-len", model_id=DENSE) is None
        assert value("--max-model-len", model_id=DENSE, max_model_len=8192) == "8192"


class TestArguments:
    def test_experts_are_spread_where_slices_of_them_would_not_fit(self) -> None:
        assert "--enable-expert-parallel" in vllm_command_line(ServingSpec())
        assert "--enable-expert-parallel" in vllm_command_line(ServingSpec(gpus_per_replica=4))
        assert "--enable-expert-parallel" not in vllm_command_line(ServingSpec(gpus_per_replica=2))

    def test_a_model_without_experts_is_not_told_to_spread_them(self) -> None:
        assert "--enable-expert-parallel" not in vllm_command_line(ServingSpec(model_id=DENSE))
        assert "--enable-expert-parallel" in vllm_command_line(ServingSpec(model_id="Qwen/Qwen3-235B-A22B-FP8"))

    @pytest.mark.parametrize(
        ("model_id", "parser"),
        [
            (DEFAULT_MODEL, "qwen3"),
            ("Qwen/Qwen3-8B", "qwen3"),
            ("Qwen/Qwen3-30B-A3B-Instruct-2507", None),
            ("Qwen/Qwen3-Coder-30B-A3B-Instruct", None),
            ("/base/Qwen3-8B", "qwen3"),
            (DENSE, None),
        ],
    )
    def test_only_models_that_think_get_a_reasoning_parser(self, model_id: str, parser: str | None) -> None:
        assert value("--reasoning-parser", model_id=model_id) == parser

    @pytest.mark.parametrize(
        "text", ["--max-model-len 4096", "--max-model-len=4096", "--max_model_len 4096", "--max_model_len=4096"]
    )
    def test_a_users_flag_replaces_ours(self, text: str) -> None:
        words = vllm_command_line(ServingSpec(vllm_args=text))
        assert sum("max" in word and "len" in word for word in words) == 1
        assert "131072" not in words
        assert words[-len(text.split()) :] == text.split()

    @pytest.mark.parametrize("text", ["--no-enable-expert-parallel", "--disable-expert-parallel", "-ep"])
    def test_so_does_its_opposite_and_its_short_name(self, text: str) -> None:
        words = vllm_command_line(ServingSpec(vllm_args=text))
        assert "--enable-expert-parallel" not in words
        assert words[-1] == text

    def test_quotes_and_negative_numbers_are_values(self) -> None:
        text = """--hf-overrides '{"a b": 1}' --seed -1 -O3"""
        assert vllm_command_line(ServingSpec(vllm_args=text))[-5:] == [
            "--hf-overrides",
            '{"a b": 1}',
            "--seed",
            "-1",
            "-O3",
        ]

    def test_data_parallel_takes_its_gpus_from_tensor_parallel(self) -> None:
        words = vllm_command_line(ServingSpec(vllm_args="--data-parallel-size 8"))
        assert words[words.index("--tensor-parallel-size") + 1] == "1"
        assert "--enable-expert-parallel" in words

    @pytest.mark.parametrize("flag", sorted(vllm_arguments.REMOVED))
    def test_flags_that_vllm_took_away_are_refused_with_the_mend(self, flag: str) -> None:
        with pytest.raises(SettingsError, match=re.escape(vllm_arguments.REMOVED[flag])):
            ServingSpec(vllm_args=f"--seed 1 {flag.replace('-', '_').replace('__', '--', 1)}")

    @pytest.mark.parametrize("flag", sorted(vllm_arguments.RESERVED))
    def test_flags_that_the_rest_depends_on_are_refused_with_the_mend(self, flag: str) -> None:
        with pytest.raises(SettingsError, match=re.escape(vllm_arguments.RESERVED[flag])):
            ServingSpec(vllm_args=f"{flag}=x")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("--seed '1", "close the quotes"),
            ("seed 1", "must begin with a flag"),
            ("--tensor-parallel-size 3", "has 8 GPUs and vllm_args take 3"),
            ("-tp 4", "has 8 GPUs"),
            ("--data-parallel-size 16", "take 16"),
            ("--tensor-parallel-size eight", "whole number"),
            ("--data-parallel-size", "whole number"),
            ("--shutdown-timeout soon", "whole number"),
            ("--shutdown-timeout 100000", "--shutdown-timeout"),
        ],
    )
    def test_what_cannot_work_is_refused(self, text: str, said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            ServingSpec(vllm_args=text)

    def test_the_grace_period_follows_the_users_shutdown_timeout(self) -> None:
        assert predictor()["terminationGracePeriodSeconds"] == 150
        assert predictor(vllm_args="--shutdown-timeout 600")["terminationGracePeriodSeconds"] == 630
        assert predictor(vllm_args="--shutdown-timeout 0")["terminationGracePeriodSeconds"] == 30


class TestManifest:
    def test_neither_secret_nor_claim_is_asked_for_when_there_is_none(self) -> None:
        pod = predictor(hf_secret="", model_cache="")
        assert "HF_TOKEN" not in {variable["name"] for variable in pod["containers"][0]["env"]}
        assert pod["volumes"][0] == {"name": "model-cache", "emptyDir": {"sizeLimit": "200Gi"}}
        assert pod["containers"][0]["resources"]["requests"]["ephemeral-storage"] == "232Gi"

    def test_a_folder_of_another_size_counts_as_the_nodes_disk(self) -> None:
        resources = container(model_cache="", cache_size="1Ti")["resources"]
        assert resources["requests"]["ephemeral-storage"] == resources["limits"]["ephemeral-storage"] == "1056Gi"

    def test_the_claim_has_the_class_that_was_chosen(self) -> None:
        assert "storageClassName" not in model_cache(ServingSpec())["spec"]
        claim = model_cache(ServingSpec(model_cache="m", storage_class="nfs", cache_size="500Gi"))
        assert (claim["metadata"]["name"], claim["spec"]["storageClassName"]) == ("m", "nfs")
        assert claim["spec"]["resources"]["requests"]["storage"] == "500Gi"

    def test_nodes_are_chosen_by_product_and_labels(self) -> None:
        chosen = predictor(node_selector={"pool": "batch"})["nodeSelector"]
        assert chosen == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "pool": "batch"}
        assert "nodeSelector" not in predictor(gpu_product="")

    def test_tolerations_are_added_and_floats_of_json_become_numbers(self) -> None:
        given_ = {"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300.0, "value": ""}
        found = predictor(tolerations=[given_])["tolerations"]
        assert found[0]["key"] == GPU
        assert found[1] == {"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        assert json.dumps(found[1]).endswith('"tolerationSeconds": 300}')

    def test_a_replica_of_one_gpu_needs_nothing_of_several(self) -> None:
        assert not {name for name in environment(profile="throughput") if name.startswith("NCCL")}
        assert "capabilities" not in container(profile="throughput")["securityContext"]

    def test_memory_is_not_locked_where_that_is_forbidden(self) -> None:
        assert container()["securityContext"]["capabilities"] == {"add": ["IPC_LOCK"]}
        assert "capabilities" not in container(ipc_lock=False)["securityContext"]

    def test_replicas_of_a_whole_node_must_stand_apart_and_small_ones_rather_do(self) -> None:
        assert "requiredDuringSchedulingIgnoredDuringExecution" in predictor()["affinity"]["podAntiAffinity"]
        small = predictor(gpus_per_replica=4)["affinity"]["podAntiAffinity"]
        assert list(small) == ["preferredDuringSchedulingIgnoredDuringExecution"]

    def test_the_engine_may_take_as_long_to_start_as_the_probe_allows(self) -> None:
        probe = container()["startupProbe"]
        allowed = probe["periodSeconds"] * probe["failureThreshold"]
        assert environment()["VLLM_ENGINE_READY_TIMEOUT_S"] == str(allowed)
        assert allowed >= 3600

    def test_metrics_are_found_on_8000_and_asked_of_the_port_that_serves_them(self) -> None:
        service = metrics_service(ServingSpec(name="a"))
        port = service["spec"]["ports"][0]
        assert (service["metadata"]["name"], port["port"], port["targetPort"]) == ("a-metrics", 8000, 8080)
        assert service["spec"]["selector"] == {"serving.kserve.io/inferenceservice": "a"}

    def test_two_manifests_share_nothing_that_could_be_changed(self) -> None:
        one, other = inference_service(ServingSpec()), inference_service(ServingSpec())
        one["spec"]["predictor"]["containers"][0]["startupProbe"]["httpGet"]["path"] = "/"
        one["metadata"]["labels"]["a"] = "b"
        assert other == inference_service(ServingSpec())
        assert "&id" not in yaml.safe_dump(other), "the same object twice would be written as a reference"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "vllm"}, "VLLM_PORT"),
    ({"name": "a" * 49}, "48"),
    ({"name": "Vllm"}, "small letters"),
    ({"name": "1a"}, "begin with a letter"),
    ({"name": "a."}, "small letters"),
    ({"name": "a-"}, "hyphens"),
    ({"name": ""}, "found ''"),
    ({"model_id": ""}, "model_id"),
    ({"model_id": "a b"}, "one word"),
    ({"model_id": "--port"}, "hyphen"),
    ({"served_model_name": "a b"}, "served_model_name"),
    ({"profile": "fast"}, "guide, throughput"),
    ({"replicas": -1}, "replicas"),
    ({"replicas": True}, "replicas"),
    ({"replicas": 1.5}, "replicas"),
    ({"gpus_per_replica": 32}, "from 1 to 16"),
    ({"gpus_per_replica": 3}, "1, 2, 4, 8 or 16"),
    ({"max_model_len": -1}, "max_model_len"),
    ({"image": "vllm/vllm-openai"}, "name a version"),
    ({"image": "vllm/vllm-openai:latest"}, "another one tomorrow"),
    ({"image": "registry:5000/vllm"}, "name a version"),
    ({"image": "vllm/vllm-openai:nightly"}, "another one tomorrow"),
    ({"image": ""}, "name a version"),
    ({"gpu_product": "NVIDIA H100"}, "63 letters"),
    ({"node_selector": {"a b": "c"}}, "label of a node"),
    ({"node_selector": {"a": 1}}, "must be text"),
    ({"tolerations": ["spot"]}, "list of objects"),
    ({"tolerations": [{"key": "a", "effekt": "NoSchedule"}]}, "effekt"),
    ({"tolerations": [{"key": "a", "operator": "Is"}]}, "Equal or Exists"),
    ({"tolerations": [{"key": "a", "effect": "Never"}]}, "NoSchedule"),
    ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "takes no value"),
    ({"tolerations": [{"effect": "NoSchedule"}]}, "operator Exists"),
    ({"tolerations": [{"key": "a", "value": True}]}, "quotes"),
    ({"tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 1.5}]}, "whole number"),
    ({"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 1}]}, "only for"),
    ({"hf_secret": "HF_TOKEN"}, "hf_secret"),
    ({"model_cache": "a/b"}, "model_cache"),
    ({"storage_class": "a b"}, "storage_class"),
    ({"cache_size": "800GB"}, "cache_size"),
    ({"cache_size": "0"}, "at least 1Gi"),
    ({"cpu": "many"}, "cpu"),
    ({"memory": "64"}, "at least 1Gi"),
]


@pytest.mark.parametrize(("choices", "said"), REFUSED, ids=lambda each: str(each)[:60])
def test_a_choice_that_cannot_work_is_refused_with_words(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        ServingSpec(**choices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "image", ["vllm/vllm-openai:v0.33.0-cu129", "r:5000/a/b:1.2", "a@sha256:" + "0" * 64, "a:nightly-" + "0f" * 20]
)
def test_images_of_a_fixed_version_are_taken(image: str) -> None:
    assert container(image=image)["image"] == image


CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?", fullmatch=True).filter(lambda name: name != "vllm"),
        "model_id": st.sampled_from([DEFAULT_MODEL, DENSE, "Qwen/Qwen3-235B-A22B", "/cache/x"]),
        "profile": st.sampled_from(["guide", "throughput"]),
        "replicas": st.integers(0, 64),
        "gpus_per_replica": st.sampled_from([0, 1, 2, 4, 8, 16]),
        "max_model_len": st.integers(0, 10**6),
        "vllm_args": st.sampled_from(["", "--seed 1", "--shutdown-timeout 5", "--no-enable-expert-parallel"]),
        "gpu_product": st.sampled_from(["", "NVIDIA-A100-SXM4-80GB"]),
        "node_selector": st.dictionaries(st.sampled_from(["pool", "a.b/c"]), st.sampled_from(["", "x"])),
        "tolerations": st.lists(st.sampled_from([{"key": "spot", "operator": "Exists"}, {"operator": "Exists"}])),
        "hf_secret": st.sampled_from(["", "token"]),
        "model_cache": st.sampled_from(["", "models"]),
        "storage_class": st.sampled_from(["", "nfs"]),
        "cache_size": st.sampled_from(["3Ti", "50Gi", "1T"]),
        "cpu": st.sampled_from(["", "4", "7500m"]),
        "memory": st.sampled_from(["", "100Gi", "1.5Ti"]),
        "ipc_lock": st.booleans(),
    },
)


@pytest.mark.skipif(crds.crd_folder() is None, reason="no CRDs here: name their folder in KLLM_CRDS")
@settings(max_examples=60, deadline=None)
@given(CHOICES)
def test_whatever_is_chosen_makes_objects_that_a_cluster_takes(choices: dict[str, Any]) -> None:
    spec = ServingSpec(**choices)
    service = inference_service(spec)
    assert crds.problems(service) == []
    assert crds.problems(metrics_service(spec)) == []
    assert not spec.model_cache or crds.problems(model_cache(spec)) == []
    resources = service["spec"]["predictor"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"][GPU]) * service["spec"]["predictor"]["minReplicas"] == spec.gpus
    assert dataclasses.replace(spec) == spec, "what was filled in is taken again"
