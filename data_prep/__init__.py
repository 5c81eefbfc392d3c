"""Raw data sets -> data/<name>/: examples, vocabulary and CNN features, ready to train on."""
