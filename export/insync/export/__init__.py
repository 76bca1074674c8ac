"""InSync export."""
