"""InSync ensemble."""
