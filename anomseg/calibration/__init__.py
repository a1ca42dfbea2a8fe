"""From raw scores to heat maps in [0, 1]."""
