"""From committed answers to files people open: Parquet, summary, report."""
