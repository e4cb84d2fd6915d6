"""Architectures behind one interface: decoders, experts, LSTM, convolution, patched bytes; and count-based n-grams."""
