"""Studies: claims as commands, and what the runs say of them."""
