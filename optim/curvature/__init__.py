"""What is known of a loss at a point: products, diagonals, local models."""
