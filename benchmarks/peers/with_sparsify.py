"""EleutherAI's sparsify: its SparseCoder, in the order of its Trainer (which wants a language model), with Adam."""

import torch
from driver import device, finish, setting, train
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

S = setting()
sae = SparseCoder(S.d_model, SparseCoderConfig(num_latents=S.latents, k=S.k), device=device())
optimizer = torch.optim.Adam(sae.parameters(), lr=S.learning_rate)
schedule = get_linear_schedule_with_warmup(optimizer, S.warmup_steps, S.steps)
since_fired = torch.zeros(S.latents, dtype=torch.long, device=device())


def step(number: int, x: Tensor) -> None:
    if number == 0:
        sae.b_dec.data = x.mean(0)
    sae.set_decoder_norm_to_unit_norm()
    out = sae(x, dead_mask=since_fired > 10_000_000)
    out.fvu.backward()
    sae.remove_gradient_parallel_to_decoder_directions()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    fired = torch.zeros(S.latents, dtype=torch.bool, device=device())
    fired[out.latent_indices.flatten()] = True
    since_fired.add_(len(x))
    since_fired[fired] = 0


finish(train(step, S.batch_size), lambda x: sae(x).sae_out)
