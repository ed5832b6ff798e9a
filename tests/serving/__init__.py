"""Deploy, wait, release and sweep against a Kubernetes API server on a real socket."""
