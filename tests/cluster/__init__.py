"""Against a real cluster, when KLLM_TEST_CLUSTER names a kubeconfig; skipped otherwise."""
