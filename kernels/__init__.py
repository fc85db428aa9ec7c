"""Kernels of the sparse step: a fast path for CPUs beside a plain PyTorch `reference` of the same signature.

    topk          exact top-k of each row, with a defined order
    batch_topk    ragged selection: the largest of a whole batch, or all above a threshold
    encode        encode and select in row chunks: no tensor of size batch x latents
    decode        sparse decode over CSR codes, plain or with residual, loss and code gradients
    update        the latent-major update: gradients, Adam, projection and unit norm in one pass
    dispatch      which implementation runs where, and why
    threads       row-parallel calls of the compiled loops
    cpu_topk      compiled CPU loops of `topk`
    cpu_encode    compiled CPU loops of the screened encode
    cpu_step      compiled CPU loops of `decode` and `update`

The lowest layer: it imports nothing else of monosem, and takes and returns plain tensors.
"""
