"""Traces of a batch's rows in Langfuse: made after the fact, counted exactly, never in the way of a row."""
