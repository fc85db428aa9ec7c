"""The plan of GPU measurements in one command, `python kernels/measure --out FILE`, from a bare checkout."""
