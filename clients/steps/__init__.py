"""What the component bodies call: one module a step, thin wiring that reads the environment and calls the rooms."""
