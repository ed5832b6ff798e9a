"""What shows the speed claims: this package's engine and what a user would pick instead, side by side in one run."""
