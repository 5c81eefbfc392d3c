"""Prepare raw data sets for training: examples, vocabulary and CNN features in data/<name>/."""
