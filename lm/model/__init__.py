"""Decoder-only transformer: parameter facts, layers, loss."""
