"""SAELens: its TopKTrainingSAE and SAETrainer."""

from driver import batches, device, finish, setting, train
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

S = setting()
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=S.d_model, d_sae=S.latents, k=S.k, device=device()))
config = SAETrainerConfig(
    total_training_samples=S.steps * S.batch_size,
    train_batch_size_samples=S.batch_size,
    lr=S.learning_rate,
    lr_end=S.learning_rate / 10,
    lr_warm_up_steps=S.warmup_steps,
    lr_decay_steps=S.decay_steps,
)
trainer = SAETrainer(cfg=config, sae=sae, data_provider=batches(S.batch_size))


def step(_number: int, x: Tensor) -> None:
    trainer.step(x)
    trainer.n_training_steps += 1


finish(train(step, S.batch_size), sae)
