"""Put the model into the cluster."""

from typing import Any

from kfp.dsl import Artifact, Input

from components._embedding import use_code
from components._factory import CHECKED, SERVING, SERVING_PACKAGES, step


@step("clients.steps.deploy_service", packages=SERVING_PACKAGES, there=(*CHECKED, *SERVING))
def deploy_service(
    code: Input[Artifact],
    serving_code: Input[Artifact],
    run: str,
    endpoint_url: str,
    service_name: str,
    after_run: str,
    lease_hours: float,
    model_id: str,
    model: str,
    profile: str,
    replicas: int,
    gpus_per_replica: int,
    image: str,
    max_model_len: int,
    vllm_args: str,
    gpu_product: str,
    node_selector: dict[str, Any],
    tolerations: list[Any],
    hf_secret: str,
    model_cache: str,
    storage_class: str,
    cache_size: str,
    cpu: str,
    memory: str,
    ipc_lock: bool,
) -> str:
    """Deploys vLLM as a KServe InferenceService. Does nothing when an endpoint is given.

    Args:
        code: Code of earlier steps.
        serving_code: Code of an earlier step.
        run: Id of the run; the service is released when this run ends.
        endpoint_url: Address of an endpoint that exists; then nothing is deployed.
        service_name: Name of an InferenceService to make or to use again. Empty makes one for this run alone.
        after_run: What becomes of the service after the run: delete, stop (keeps the object without pods) or keep.
        lease_hours: Hours after which a run of which nothing is to be seen counts as dead, and its GPUs are freed.
        model_id: Model on Hugging Face, or a path in the model cache.
        model: Name under which the model is served; empty takes one made of model_id.
        profile: guide (2 replicas of 8 GPUs) or throughput (16 replicas of 1 GPU).
        replicas: Number of replicas; 0 takes the profile's.
        gpus_per_replica: GPUs of each replica, which is its tensor parallel size; 0 takes the profile's.
        image: vLLM image with a fixed tag.
        max_model_len: Longest prompt and answer together, in tokens; 0 takes the profile's.
        vllm_args: Further arguments of vllm serve, as on a command line; one given here replaces ours.
        gpu_product: Node label nvidia.com/gpu.product to ask for; empty takes any GPU.
        node_selector: Further node labels to ask for.
        tolerations: Further tolerations, as in a pod's spec.
        hf_secret: Name of the Secret whose key HF_TOKEN is the Hugging Face token; empty for public models.
        model_cache: Name of the PersistentVolumeClaim for model files; made if absent, never deleted. Empty for none.
        storage_class: Storage class of the model cache when it is made; empty takes the cluster's default.
        cache_size: Size of the model cache when it is made.
        cpu: CPUs of each replica; empty takes a number that fits its GPUs.
        memory: Memory of each replica; empty takes an amount that fits its GPUs.
        ipc_lock: Whether replicas of several GPUs may lock memory, as InfiniBand needs it.

    Returns:
        What wait_service needs.
    """
    use_code(code, serving_code)
    from clients.steps.deploy_service import deploy_service as run_step

    return run_step(
        run=run,
        endpoint_url=endpoint_url,
        service_name=service_name,
        after_run=after_run,
        lease_hours=lease_hours,
        settings={
            "model_id": model_id,
            "served_model_name": model,
            "profile": profile,
            "replicas": replicas,
            "gpus_per_replica": gpus_per_replica,
            "image": image,
            "max_model_len": max_model_len,
            "vllm_args": vllm_args,
            "gpu_product": gpu_product,
            "node_selector": node_selector,
            "tolerations": tolerations,
            "hf_secret": hf_secret,
            "model_cache": model_cache,
            "storage_class": storage_class,
            "cache_size": cache_size,
            "cpu": cpu,
            "memory": memory,
            "ipc_lock": ipc_lock,
        },
    )
