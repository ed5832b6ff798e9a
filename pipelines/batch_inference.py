"""The batch inference pipeline: check, deploy, wait, run, merge, gate; and release, whatever happens."""

from typing import Any

from kfp import dsl

from clients.storage.object_stores import MINIO_ENDPOINT
from components._factory import IMAGE
from components.bring_code import engine_code, prompts_code, serving_code, stores_code
from components.check_prompts import check_prompts
from components.deploy_service import deploy_service
from components.plan_shards import plan_shards
from components.release_service import release_service
from components.wait_service import wait_service
from pipelines.resources import READING_H, WAITING_H, prepare, with_endpoint_key, with_stores
from pipelines.run_shards import run_shards


@dsl.pipeline(  # type: ignore[untyped-decorator]
    name="batch-inference",
    display_name="Batch inference",
    description="Deploys a model with vLLM on KServe, runs a file of prompts, writes the answers to Parquet, "
    "and gives the GPUs back.",
)
def batch_inference(
    prompts: str,
    endpoint_url: str = "",
    model: str = "",
    system_prompt: str = "",
    request_defaults: dict[str, Any] = {},  # noqa: B006  (KFP reads the default, nothing changes it)
    template: str = "",
    shards: int = 4,
    concurrency: int = 0,
    max_error_rate: float = 0.2,
    output: str = "",
    state: str = "",
    run_date: str = "",
    server_wait_s: int = 600,
    options: dict[str, Any] = {},  # noqa: B006
    model_id: str = "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8",
    profile: str = "guide",
    replicas: int = 0,
    gpus_per_replica: int = 0,
    image: str = "vllm/vllm-openai:v0.32.0",
    max_model_len: int = 0,
    vllm_args: str = "",
    gpu_product: str = "NVIDIA-H100-80GB-HBM3",
    node_selector: dict[str, Any] = {},  # noqa: B006
    tolerations: list[Any] = [],  # noqa: B006
    cpu: str = "",
    memory: str = "",
    ipc_lock: bool = True,
    hf_secret: str = "hf-secret",  # noqa: S107  (the name of a Secret, not its value)
    model_cache: str = "model-cache",
    storage_class: str = "",
    cache_size: str = "3Ti",
    service_name: str = "",
    after_run: str = "delete",
    ready_timeout_s: int = 7200,
    lease_hours: float = 12.0,
    storage_secret: str = "storage-credentials",  # noqa: S107  (names of Secrets, not their values)
    endpoint_secret: str = "endpoint-credentials",  # noqa: S107
    langfuse_secret: str = "langfuse-credentials",  # noqa: S107
    store_endpoint: str = MINIO_ENDPOINT,
    step_image: str = IMAGE,
) -> None:
    """Deploys a model with vLLM on KServe, runs a file of prompts, and gives the GPUs back.

    Args:
        prompts: The input: JSONL (one request a line), CSV, TSV or Parquet; text also with gzip or zstd. An address
            (s3://, minio://, gs://, https://, hf://), a path on a volume, or the text as pipelines.run puts it here.
            {date}, {yesterday} and {run} are replaced.
        endpoint_url: Address of an OpenAI-compatible API that exists, or several divided by commas; then nothing is
            deployed. Empty deploys the model.
        model: Name of the model at the endpoint. Empty takes the first one an endpoint lists, and for a model that is
            deployed a name made of model_id.
        system_prompt: First message of rows that have no system message of their own.
        request_defaults: Request fields that a row gets unless it has its own, such as {"max_tokens": 1024}.
        template: User message with {name} where a column's value goes, such as "Translate into Korean: {text}". Empty
            takes a row's own prompt or messages.
        shards: Number of parts the rows are cut into. Each is run by a pod; of more than 16 a pod runs several.
        concurrency: Most requests in flight, over all shards. 0 lets the engine find out what the server can run.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong before the run counts as failed.
        output: Folder or URI that gets results.parquet, rejects.parquet, summary.json, report.html and report.md.
            {date}, {yesterday} and {run} are replaced. Empty keeps them as artifacts only.
        state: Folder or URI where finished rows are kept, so that a rerun does not send them again. Empty takes a place
            beside Kubeflow's own artifacts.
        run_date: Date the run is for, such as 2026-11-25; empty takes today's in UTC.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.
        options: Further choices, such as {"retry": "truncated", "resample": "empty", "time_limit_s": 3600,
            "max_output_tokens": 1000000, "reasoning_max_tokens": 32768, "raw_response": true}.
        model_id: Model to deploy, on Hugging Face or as a path in the model cache.
        profile: guide (2 replicas of 8 GPUs) or throughput (16 replicas of 1 GPU).
        replicas: Number of replicas; 0 takes the profile's.
        gpus_per_replica: GPUs of each replica, which is its tensor parallel size; 0 takes the profile's.
        image: vLLM image with a fixed tag.
        max_model_len: Longest prompt and answer together, in tokens; 0 takes the profile's.
        vllm_args: Further arguments of vllm serve, as on a command line; one given here replaces ours.
        gpu_product: Node label nvidia.com/gpu.product to ask for; empty takes any GPU.
        node_selector: Further node labels to ask for.
        tolerations: Further tolerations, as in a pod's spec.
        cpu: CPUs of each replica; empty takes a number that fits its GPUs.
        memory: Memory of each replica; empty takes an amount that fits its GPUs.
        ipc_lock: Whether replicas of several GPUs may lock memory, as InfiniBand needs it. Namespaces with the Pod
            Security level baseline or restricted refuse such pods; false leaves it out.
        hf_secret: Name of the Secret whose key HF_TOKEN is the Hugging Face token; empty for public models.
        model_cache: Name of the PersistentVolumeClaim for model files; made if absent, never deleted. Empty for none.
        storage_class: Storage class of the model cache when it is made; empty takes the cluster's default.
        cache_size: Size of the model cache when it is made.
        service_name: Name of an InferenceService to make or to use again. Empty makes one for this run alone.
        after_run: What becomes of a service made here after the run: delete, stop (keeps the object without pods) or
            keep.
        ready_timeout_s: Seconds to wait until the model serves: scheduling, download, loading.
        lease_hours: Hours after which a run of which nothing is to be seen counts as dead, and its GPUs are freed.
        storage_secret: Name of a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and where needed
            AWS_SESSION_TOKEN, AWS_ENDPOINT_URL and AWS_REGION, for s3:// addresses. It may be absent.
        endpoint_secret: Name of a Secret whose key OPENAI_API_KEY is the endpoint's key. It may be absent.
        langfuse_secret: Name of a Secret with LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY and LANGFUSE_BASE_URL. Without
            it nothing is traced.
        store_endpoint: Address of Kubeflow's own object store, to which minio:// leads.
        step_image: Image that the steps run in: Python, or an own one with the packages in it, which starts faster and
            needs no package index.
    """
    run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    release = prepare(
        release_service(run=run, endpoint_url=endpoint_url, service_name=service_name),
        "Release service",
        image=step_image,
    ).set_retry(num_retries=3, backoff_duration="30s")
    with dsl.ExitHandler(release, name="with-service"):
        stores = prepare(stores_code(), "Bring stores code", image=step_image)
        reading = prepare(prompts_code(), "Bring prompts code", image=step_image)
        engine = prepare(engine_code(), "Bring engine code", image=step_image)
        serving = prepare(serving_code(), "Bring serving code", image=step_image)
        checked = prepare(
            check_prompts(
                stores_code=stores.outputs["code"],
                prompts_code=reading.outputs["code"],
                engine_code=engine.outputs["code"],
                run=run,
                prompts=prompts,
                output=output,
                state=state,
                run_date=run_date,
                store_endpoint=store_endpoint,
                options=options,
                system_prompt=system_prompt,
                request_defaults=request_defaults,
                template=template,
            ),
            "Check prompts",
            image=step_image,
            timeout_h=READING_H,
        )
        with_stores(checked, storage_secret)
        service = prepare(
            deploy_service(
                code=checked.outputs["code"],
                serving_code=serving.outputs["code"],
                run=run,
                endpoint_url=endpoint_url,
                service_name=service_name,
                after_run=after_run,
                lease_hours=lease_hours,
                model_id=model_id,
                model=model,
                profile=profile,
                replicas=replicas,
                gpus_per_replica=gpus_per_replica,
                image=image,
                max_model_len=max_model_len,
                vllm_args=vllm_args,
                gpu_product=gpu_product,
                node_selector=node_selector,
                tolerations=tolerations,
                hf_secret=hf_secret,
                model_cache=model_cache,
                storage_class=storage_class,
                cache_size=cache_size,
                cpu=cpu,
                memory=memory,
                ipc_lock=ipc_lock,
            ),
            "Deploy service",
            image=step_image,
        )
        endpoint = prepare(
            wait_service(
                code=checked.outputs["code"],
                serving_code=serving.outputs["code"],
                service=service.output,
                endpoint_url=endpoint_url,
                model=model,
                ready_timeout_s=ready_timeout_s,
                server_wait_s=server_wait_s,
                lease_hours=lease_hours,
            ),
            "Wait for service",
            image=step_image,
            timeout_h=WAITING_H,
        ).set_retry(num_retries=1, backoff_duration="10s")
        with_endpoint_key(endpoint, endpoint_secret)
        plan = prepare(
            plan_shards(
                code=checked.outputs["code"],
                checked=checked.outputs["checked"],
                endpoint=endpoint.output,
                shards=shards,
                concurrency=concurrency,
                server_wait_s=server_wait_s,
                max_error_rate=max_error_rate,
                store_endpoint=store_endpoint,
                options=options,
            ),
            "Plan shards",
            image=step_image,
        )
        with_stores(plan, storage_secret)
        run_shards(
            code=plan.outputs["more_code"],
            plan=plan.outputs["plan"],
            specs=plan.outputs["Output"],
            endpoint=endpoint.output,
            max_error_rate=max_error_rate,
            storage_secret=storage_secret,
            endpoint_secret=endpoint_secret,
            langfuse_secret=langfuse_secret,
            store_endpoint=store_endpoint,
            step_image=step_image,
        ).set_display_name("Run shards").set_caching_options(False)
