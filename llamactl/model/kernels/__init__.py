"""What a CPU computes by kernels that numba compiles: attention, steps of decoding, the choice of a token."""
