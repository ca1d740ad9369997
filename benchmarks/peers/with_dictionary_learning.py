"""dictionary_learning: its TopKTrainer."""

from dictionary_learning.trainers.top_k import TopKTrainer
from driver import device, finish, setting, train

S = setting()
trainer = TopKTrainer(
    steps=S.steps,
    activation_dim=S.d_model,
    dict_size=S.latents,
    k=S.k,
    layer=0,
    lm_name="none",
    lr=S.learning_rate,
    warmup_steps=S.warmup_steps,
    decay_start=S.steps - S.decay_steps,
    seed=0,
    device=device(),
)
finish(train(trainer.update, S.batch_size), trainer.ae)
