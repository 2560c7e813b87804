"""Products over rows picked from a matrix in DRAM, compiled for the processor at hand."""
