"""Hand on what another step wrote."""

from kfp.dsl import Artifact, Input

from components._factory import step


@step()
def prompts_address(prompts: Input[Artifact]) -> str:
    """Tells where an artifact lies, for the parameter `prompts` of a batch pipeline.

    Kubeflow brings the artifact to this step's pod before it runs. A step that writes prompts itself can do without: it
    may return `prompts.uri` of its own output.

    Args:
        prompts: Artifact of an earlier step: JSONL, CSV or Parquet.

    Returns:
        Its address.
    """
    return str(prompts.uri)
