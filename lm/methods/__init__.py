"""From the configuration to a transform and its schedule."""
