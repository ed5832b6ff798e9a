"""What the component bodies call: one module a step. Thin wiring that reads the environment once and calls the rooms."""
