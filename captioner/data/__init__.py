"""Images, vocabulary, stored features and captions, up to the batches of training."""
