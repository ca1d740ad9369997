import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.generate import Shape, decoding
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM

SHAPE = Shape(d_model=32, layers=4, heads=4, concept_layer=2, vocab=61, latents=40, short=4, long=20, new_tokens=5)


def test_what_is_measured_is_greedy_decoding_and_every_turn_does_the_same() -> None:
    torch.manual_seed(0)
    for model in (
        CoCoMixForCausalLM(CoCoMixConfig(**SHAPE.gpt2, concept_layer=2, num_concepts=40)).eval(),
        GPT2LMHeadModel(GPT2Config(**SHAPE.gpt2)).eval(),
    ):
        decode = decoding(model, SHAPE.long, SHAPE.new_tokens)
        ids = decode()
        settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = model.generate(ids[:, : SHAPE.long], **settings, use_cache=False)
        assert ids.tolist() == expected.tolist()
        assert decode().tolist() == ids.tolist()
