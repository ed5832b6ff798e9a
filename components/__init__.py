"""The contract of each pipeline step: a signature, a docstring, a call into clients.steps."""
