"""What a run measures at some of its updates, beside the usual metrics."""
