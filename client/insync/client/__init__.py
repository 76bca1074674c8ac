"""InSync client."""
