"""A fake vLLM for benchmarks and fault tests: continuous batching in simulated time, faults by seed, loopback only."""
