"""The figures behind the claims: speed, the study on captions, long memories, gradients."""
