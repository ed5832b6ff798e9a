"""What became of the traces, for people."""

from clients.results.format import count, counted
from clients.results.summary import Summary


def trace_fact(summary: Summary) -> str:
    """One line; "" when nothing was traced."""
    traces = summary.get("traces")
    if not traces:
        return ""
    facts = [f"{counted(traces.get('exported', 0), 'trace')} in Langfuse"]
    if traces.get("spooled"):
        facts.append(f"{count(traces['spooled'])} kept for later")
    if traces.get("dropped"):
        facts.append(f"{count(traces['dropped'])} lost")
    if traces.get("sampled_out"):
        facts.append(f"{count(traces['sampled_out'])} left out by choice")
    return ", ".join(facts)
