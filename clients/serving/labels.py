"""Names that this package writes on Kubernetes objects, and those of others that it reads."""

#: Owner of the fields that we apply; a conflict names the other owner.
FIELD_MANAGER = "kubeflow-llm-inference"

#: Everything we make carries this label with the field manager's name.
MANAGED_BY = "app.kubernetes.io/managed-by"

#: Annotation prefix of a holder: one per run that needs the service, with the time at which its hold ends.
HOLDER_PREFIX = "holder.kubeflow-llm-inference/"

#: Annotation: the run that made the service.
CREATED_BY = "kubeflow-llm-inference/created-by"

#: Annotation: what becomes of the service when its last holder lets go: delete, stop or keep.
AFTER_RUN = "kubeflow-llm-inference/after-run"

#: KServe's label on the Deployment and the pods of an InferenceService.
SERVICE_LABEL = "serving.kserve.io/inferenceservice"

#: NVIDIA's label on nodes: what GPUs they have.
GPU_PRODUCT = "nvidia.com/gpu.product"

#: KServe's annotation that takes the workload away and keeps the InferenceService.
STOP = "serving.kserve.io/stop"

#: Kubeflow Pipelines' label on the pods of a run.
RUN_LABEL = "pipeline/runid"

#: Annotation: the run that started a service which it found stopped; released, it is stopped again.
WOKEN_BY = "kubeflow-llm-inference/woken-by"
