"""The batch engine: rows in, committed answers out, nothing lost and nothing repeated."""
