"""Networks without training knowledge."""
