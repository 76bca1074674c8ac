"""The network in PyTorch: one module per component, each citing the paper that it is based on."""
