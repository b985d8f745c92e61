"""Integer kernels, one module for each kind of machine."""
