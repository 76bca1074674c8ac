"""Fallback backends for the embedded server, which lacks the compiled backends of a stock Triton container.

Each folder is a Python-based backend: it serves every model whose config has `backend: "<folder>"`, reads the
parameters that the compiled backend reads, and runs the same library on the CPU.
"""
