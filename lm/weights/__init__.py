"""From what is trained to what the model sees."""
