"""Packaging. Versions are ranges here, as a library wants them; constraints.txt holds what is installed and tested."""

from pathlib import Path

from setuptools import setup

setup(
    name="kubeflow-llm-inference",
    version="0.1.0",
    description="Batch LLM inference on Kubeflow: vLLM on KServe, sharded chat completions, Langfuse traces, Parquet.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # Named one by one: the names are generic, and a search for packages would ship the tests too.
    packages=[
        "clients",
        "clients.batch",
        "clients.fake_vllm",
        "clients.prompts",
        "clients.results",
        "clients.serving",
        "clients.steps",
        "clients.storage",
        "clients.tracing",
        "compiled",
        "components",
        "pipelines",
        "pipelines.checks",
        "pipelines.remote",
    ],
    package_data={"compiled": ["*.yaml"]},
    install_requires=[
        # 2.17.0 is the first that runs ParallelFor and exit handlers locally. 2.17.3 asks for a certifi that was never
        # published, so it cannot be installed.
        "kfp>=2.17.0,<2.18,!=2.17.3",
        "kfp-kubernetes>=2.17.0,<2.18,!=2.17.3",
        "openai>=3,<4",
        "langfuse>=5,<6",
        "pandas>=2.2,<4",
        "pyarrow>=21",
        "httptools>=0.6",
        "pyppmd>=1.1,<2",  # packs the code that travels in compiled pipelines
        "orjson>=3.10,<4",
        "uvloop>=0.21; platform_system != 'Windows'",
        "jsonschema>=4.23,<5",
        "lightkube>=1,<2",
        "urllib3>=2",
        "PyYAML>=6,<7",
        "rich>=14",
    ],
    extras_require={
        "dev": [
            "aiohttp>=3.12,<4",
            "coverage>=7.10",
            "duckdb>=1.3",
            "flask>=3,<4",  # with flask-cors what moto's server runs on, without the rest of its extra "server"
            "flask-cors>=5",
            "gcp-storage-emulator>=2026",
            "hypothesis>=6.130",
            "moto[s3]>=5.2,<6",
            "mypy>=1.16",
            "opentelemetry-proto>=1.40,<2",
            "pytest>=8.4",
            "pytest-asyncio>=1",
            "pytest-cov>=6",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "ruff>=0.12",
        ]
    },
)
