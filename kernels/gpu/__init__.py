"""Triton kernels: each file serves the operation of the same name one folder up."""

import os

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # said aloud: Triton's default is about to change
