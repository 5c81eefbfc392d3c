"""The web page, `python -m app`: visitors' requests to a captioner and its answers."""
