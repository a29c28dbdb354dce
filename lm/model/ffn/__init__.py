"""Feed-forward blocks: what a layer does to each token by itself."""
