"""Commands and pipelines as a person runs them on one machine, against servers on real sockets."""
