"""InSync network."""
