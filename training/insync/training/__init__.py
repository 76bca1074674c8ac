"""Curation of footage, training of the network, and evaluation of the result."""
