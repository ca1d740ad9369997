"""Estimated needs of each stage, from the parameters alone: text, FLOPs, disk and memory, computed without tensors.

FLOPs are matrix products, two operations per multiply-add, as `cocomix.shapes.models` counts. With F FLOPs per token
of the base model's forward pass, f of them up to the layer, d its width, C latents:

    base_tokens  none; with base.tokenizer: own, F and f are for each of the base model's tokens
    base         3 F per training token; if pretrained, F per validation token
    activations  f per stored token
    sae          `cocomix.shapes.label_flops`, per token and epoch; plus f if the activations are not kept
    attribution  `cocomix.shapes.label_flops`, per training and validation token
    distribution F per training and validation token; 0 without draws
    explain      f + 2 d C per token read
    pretrain     3 times the model's forward pass per token, plus the base model's part
    with Muon    also the orthogonalisation of each matrix of the blocks, per step, in base and pretrain
    evaluate     the model's forward pass per held-out token; for CoCoMix also the passes with changed concepts
    steer        for each edit, the model's forward pass per token of the text and of the continuation; and twice per
                 token of the text in which predictions are read, once for each place at which a concept is doubled

Training FLOPs are counted as in the metrics, without the validation losses. Disk is the size of the artifact, plus that
of the work folder while the stage runs. Memory is a rough estimate for one process: weights, gradients and AdamW's two
moments in fp32, 16 bytes per parameter, or 12 with Muon's one; and activations kept for the backward pass, 34 bytes per
layer, position and dimension (Korthikanti et al. 2022, arXiv 2205.05198, Eq. 2, without the attention matrix). A base
model that only runs has the bytes of its weights, in base.dtype; up to the layer where no block above it is needed.
Measured constants name their source.

The trainings of base and pretrain wait while a checkpoint is written, which holds the weights and the optimiser's
moments. One that is read takes no further memory: the file is mapped, once for all processes of a machine.
"""
