"""The encoder, the LSTM and the decoders."""
