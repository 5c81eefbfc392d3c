"""Images, words and captions: what comes in, as batches."""
