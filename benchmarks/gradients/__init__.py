"""Where the gradient of an LSTM goes: along the cell state, and through h."""
