"""A batch pipeline as one task of another pipeline."""

from typing import Any

from kfp import dsl


def as_task(pipeline: Any, **arguments: Any) -> dsl.PipelineTask:
    """Use a pipeline as a task within a pipeline of one's own.

    Calling the pipeline does the same where the server fills in the defaults of nested pipelines; those before
    2.15 end such a run with "parent DAG does not have input parameter". Here every parameter is passed on.

    Args:
        pipeline: Such as `pipelines.batch_client.batch_client`.
        arguments: Its parameters; those that are not given keep their defaults.

    Raises:
        TypeError: it has no such parameter, or one that it needs is missing.
    """
    inputs = pipeline.component_spec.inputs
    defaults = {name: given.default for name, given in inputs.items() if given.default is not None}
    return pipeline(**{**defaults, **arguments}).set_caching_options(False)
