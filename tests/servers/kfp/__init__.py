"""What the stand-in for a Kubeflow Pipelines API is made of; see `tests.servers.kfp_api`."""
