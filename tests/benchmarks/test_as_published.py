import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.as_published import PublishedStudent, PublishedTeacher, student_loss
from cocomix.attribution.labelling import gradient_scores, loss_gradient, strongest
from cocomix.base.loading import prepared
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder
from cocomix.training.objectives import ConceptMixing, Weighted

SHAPE = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 3, "n_head": 2, "bos_token_id": 0}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_the_student_has_the_as_published_loss_and_gradients(kind: str) -> None:
    config = CoCoMixConfig(
        **SHAPE | NO_DROPOUT | {"activation_function": "gelu_pytorch_tanh", "attn_implementation": kind},
        num_concepts=24,
        concept_layer=1,
        concept_k=4,
        concept_head="released",
        concept_init="normal",
        initializer_range=0.2,
    )
    model = CoCoMixForCausalLM(config)
    published = PublishedStudent.of(model)
    windows, labels = torch.randint(0, 32, (3, 8)), torch.randint(0, 24, (3, 8, 4))
    losses = ConceptMixing(model, Weighted(0.3))(windows, labels)
    ours = losses.tokens / (3 * 7) + 0.3 * losses.auxiliary["concept"] / (3 * 8)
    theirs = student_loss(published(windows), windows, labels, 0.3)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    gradients = {name: each.grad for name, each in model.transformer.named_parameters()}
    for name, weight in published.named_parameters():
        expected: Tensor | None = weight.grad if name != "mixer.compress.weight" else weight.grad.T  # type: ignore[union-attr]
        torch.testing.assert_close(gradients[name], expected, atol=1e-6, rtol=1e-4, msg=name)


def test_the_labels_are_the_as_published_ones_where_there_are_any() -> None:
    base = GPT2LMHeadModel(GPT2Config(**SHAPE | NO_DROPOUT, attn_implementation="eager", initializer_range=0.2))
    sae = SparseAutoencoder(SaeConfig(d_model=16, latents=24, k=6, normalize="token", layer=2))
    for weight in sae.parameters():
        torch.nn.init.normal_(weight)
    windows = torch.randint(0, 32, (5, 8))
    with torch.enable_grad():
        published, _ = PublishedTeacher(base, sae, layer=2, k_attr=3)(windows)
    gradient = loss_gradient(prepared(base), windows, 2)
    ours = strongest(*gradient_scores(sae, gradient), 3, "released").concepts.view(5, 8, 3)
    labelled = ours >= 0
    assert labelled[:, :-1].float().mean() > 0.5
    assert not labelled[:, -1].any()
    assert torch.equal(ours[labelled], published[labelled])
