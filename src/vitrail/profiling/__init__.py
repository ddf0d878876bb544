"""What a model costs: multiply-accumulates, memory, and the time of attention kernels."""
