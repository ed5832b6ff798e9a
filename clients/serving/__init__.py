"""A model on Kubernetes: deployed, waited for with a named cause, and never left running."""
