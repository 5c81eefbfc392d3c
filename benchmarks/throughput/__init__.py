"""How fast the captioner is, beside the plain loops that people write for the same job."""
