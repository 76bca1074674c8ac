"""The network in PyTorch: one module for each component of the design, each with the paper that it comes from."""
