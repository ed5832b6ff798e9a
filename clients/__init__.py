"""Everything that happens at run time, in a pod or on a laptop. Nothing here imports kfp."""
