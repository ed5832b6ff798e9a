# The image of the pipeline's steps: starts without pip and without a package index. The YAML stays the same:
#   docker build -t registry.example.com/kubeflow-llm-inference:0.1.0 .
#   python -m pipelines.run --host URL --image registry.example.com/kubeflow-llm-inference:0.1.0 ...
# A step still asks pip for its packages; pip finds each of them there, at that version, and opens no connection.
# kserve/sweep.yaml runs in it, too.

# The image that steps run in without one of their own.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# Versions are those of the constraints file. All that these packages need is in the list, so pip looks for nothing else:
# kfp is here for the part that runs a step's function, not for its clients of Google Cloud and Kubernetes.
COPY constraints.txt /tmp/constraints.txt
RUN python3 -m pip install --no-cache-dir --no-deps --disable-pip-version-check --root-user-action ignore \
    --constraint /tmp/constraints.txt \
    kfp pyppmd orjson pyarrow \
    httptools uvloop jsonschema attrs jsonschema-specifications referencing rpds-py typing_extensions \
    lightkube lightkube-models msgspec PyYAML httpx2 httpcore2 anyio h11 h2 hpack hyperframe idna truststore wsproto

# For `python -m clients.serving sweep`. A step carries its own code, which goes before this.
COPY clients /opt/kubeflow-llm-inference/clients

# After the packages have their bytecode: the code that a step unpacks runs once, so its own would be written in vain.
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PYTHONPATH=/opt/kubeflow-llm-inference

# A number, so that Kubernetes can see that it is not root (runAsNonRoot). Steps write to /tmp and to what KFP mounts.
RUN useradd --uid 65532 --user-group --create-home --shell /usr/sbin/nologin step
USER 65532:65532
WORKDIR /home/step
