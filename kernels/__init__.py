"""Kernels of the sparse step: Triton on GPUs and compiled loops on CPUs, each beside a plain PyTorch `reference`.

    topk          exact top-k of each row, with a defined order
    kth           the m-th largest of a flat tensor, and how many of its equals belong to the m largest
    encode        encode and select in row chunks: no tensor of size batch x latents
    batch_topk    the batch * k largest pre-activations of a whole batch
    threshold     all pre-activations above a bound
    jumprelu      thresholds per latent, and their straight-through gradients
    decode        sparse decode over CSR codes, plain or with residual, loss and code gradients
    code_gradients  the gradient to given codes from any residual
    update        the latent-major update: gradients, Adam, projection and unit norm in one pass, or gradients alone
    auxk          the dead-latent aid, on the compacted dead set
    pursuit       batched matching pursuit
    growth        a dictionary grown by the rows that matching pursuit misses
    dense         the same step by dense products, where a large share of the latents is active
    dispatch      which implementation runs where, and why; `explain` says it for a shape
    operators     kernels as PyTorch operators; `sharding` gives them DTensor rules
    graph         a step recorded as a CUDA graph
    cpu, gpu      the compiled loops and the Triton kernels, a file for each operation
    measure       one script that measures everything on a GPU

A public function checks its input and calls the operator, which runs the backend of its tensors' device: `gpu/OP.py`,
`cpu/OP.py`, or the reference. The lowest layer: it imports nothing else of monosem, and takes and returns tensors.
"""
