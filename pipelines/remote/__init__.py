"""The hand-off to a Kubeflow Pipelines API: connect, submit, follow, schedule."""
