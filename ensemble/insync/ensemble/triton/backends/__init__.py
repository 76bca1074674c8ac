"""Stand-ins for the compiled backends of a stock Triton container, for the embedded server, which has none of them.

Each folder is a Python-based backend: it serves every model whose config says `backend: "<folder>"`, reads the
parameters that the compiled backend reads, and runs the same library on the CPU.
"""
