"""What the model is trained to do, as sums over tokens."""
