"""L2 normalisation of rows, shared by the kernels of the losses."""
