"""What a user would pick instead, each a command of its own; none of them uses this project's code."""
