"""A pipeline with steps of its own before and after the batch: one writes prompts, one reads the answers.

    python examples/extend_pipeline.py

writes topics.yaml, to be uploaded or submitted as any pipeline of Kubeflow.
"""

from kfp import compiler, dsl
from kfp.dsl import Dataset, Output

from components.prompts_address import prompts_address
from pipelines import as_task
from pipelines.batch_client import batch_client
from pipelines.resources import prepare, with_stores

PYTHON = "python:3.11.14-slim-bookworm"


@dsl.component(base_image=PYTHON)
def write_prompts(topics: list[str], prompts: Output[Dataset]) -> None:
    """Writes a question about each topic.

    Args:
        topics: What to ask about.
        prompts: One request a line.
    """
    import json
    from pathlib import Path

    rows = [{"id": topic, "prompt": f"Explain {topic} in one sentence."} for topic in topics]
    Path(prompts.path).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@dsl.component(base_image=PYTHON, packages_to_install=["pandas==3.1.1", "pyarrow==26.0.1"])
def longest_answer(output: str) -> str:
    """Finds the topic with the longest answer.

    Args:
        output: Folder or URI with the results.
    """
    import pandas as pd

    answers = pd.read_parquet(f"{output}/results.parquet", columns=["id", "content", "outcome"])
    right = answers[answers["outcome"] == "ok"]
    return str(right.loc[right["content"].str.len().idxmax(), "id"])


@dsl.pipeline(name="topics", description="Asks about topics and tells which answer is the longest.")
def topics_pipeline(topics: list[str], endpoint_url: str, output: str) -> None:
    """Asks about topics and tells which answer is the longest.

    Args:
        topics: What to ask about.
        endpoint_url: Address of an OpenAI-compatible API.
        output: Folder or URI for the results.
    """
    written = prepare(write_prompts(topics=topics), "Write prompts", image=PYTHON)
    address = prepare(prompts_address(prompts=written.outputs["prompts"]), "Prompts address", image=PYTHON)
    # The whole batch is one task here. What is not given keeps its default, so the Secrets have their usual names.
    batch = as_task(batch_client, prompts=address.output, endpoint_url=endpoint_url, output=output, shards=2)
    batch.set_display_name("Batch")
    longest = prepare(longest_answer(output=output).after(batch), "Longest answer", image=PYTHON)
    with_stores(longest, "storage-credentials")


if __name__ == "__main__":
    compiler.Compiler().compile(topics_pipeline, "topics.yaml")
