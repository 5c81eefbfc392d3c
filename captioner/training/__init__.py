"""How a decoder is trained."""
