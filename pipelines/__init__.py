"""What runs, in what order, with which resources; and the hand-off to people: run, compile."""
