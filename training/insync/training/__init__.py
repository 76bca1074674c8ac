"""InSync training."""
