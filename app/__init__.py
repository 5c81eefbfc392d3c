"""The web page: `python -m app`. Everything about models lies in captioner."""
