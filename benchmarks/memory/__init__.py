"""Tasks that need long memories: the paper's evidence for h-detach, beside other networks."""
