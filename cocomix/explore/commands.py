"""The commands `python -m cocomix concepts`, `generate` and `steer`, once their options are parsed."""

import argparse
import json

from rich.console import Console
from rich.text import Text

from cocomix.explore.continuation import Sampling, checked_temperature, continuation, default_tokens
from cocomix.explore.edit_syntax import Written, parse_edit
from cocomix.explore.load import load_extractor, load_labels, load_model
from cocomix.explore.terminal import Stream, harmless, meanings, side_by_side, table_of
from cocomix.modeling import ConceptFields
from cocomix.plumbing.artifact import MANIFEST
from cocomix.plumbing.as_json import plain
from cocomix.plumbing.errors import UserError
from cocomix.steering.autoencoder import concepts_edited, editing
from cocomix.steering.reading import concepts, encode


def show_concepts(options: argparse.Namespace, console: Console) -> None:
    """Show the concepts at each token of a text."""
    if options.top < 1:
        raise UserError("--top must be 1 or more")
    model, tokenizer = load_model(options.model)
    labels_at_hand = (options.artifacts / "concepts" / MANIFEST).is_file()
    extractor = load_extractor(options.artifacts, model) if labels_at_hand else None
    positions = concepts(model, options.text, tokenizer, extractor, load_labels(options.artifacts, model))
    if options.json:
        print(json.dumps([plain(each._replace(predicted=each.predicted[: options.top])) for each in positions]))
    else:
        console.print(table_of(positions, options.top))


def generate(options: argparse.Namespace, console: Console) -> None:
    """Continue a text, with or without edits."""
    model, tokenizer = load_model(options.model)
    sampling = _sampling(options, model.config.max_position_embeddings)
    edits = _edits(options, model.config)
    writer, sae = model, None
    if options.base:
        writer, sae, _, own = load_extractor(options.artifacts, model)
        tokenizer = own or tokenizer
    ids = encode(writer, options.text, tokenizer, sampling.tokens)
    with editing(writer, sae, edits) as edited:
        if options.json:
            text = continuation(writer, tokenizer, ids, sampling, **edited)
            print(json.dumps({"prompt": options.text, "edits": options.edit, "continuation": text}))
        else:
            console.print(Text(harmless(options.text), "dim"), end="", soft_wrap=True)
            continuation(writer, tokenizer, ids, sampling, streamer=Stream(tokenizer, console), **edited)


def steer(options: argparse.Namespace, console: Console) -> None:
    """Show continuations without and with edits, from the same random numbers."""
    model, tokenizer = load_model(options.model)
    sampling = _sampling(options, model.config.max_position_embeddings)
    edits, ids = _edits(options, model.config), encode(model, options.text, tokenizer, sampling.tokens)
    found = {
        "original": continuation(model, tokenizer, ids, sampling),
        "steered": continuation(model, tokenizer, ids, sampling, concept_edits=edits),
    }
    if options.base:
        base, sae, _, own = load_extractor(options.artifacts, model)
        tokenizer = own or tokenizer
        ids = encode(base, options.text, tokenizer, sampling.tokens)
        found["base"] = continuation(base, tokenizer, ids, sampling)
        with concepts_edited(base, sae, edits):
            found["base steered"] = continuation(base, tokenizer, ids, sampling)
    if options.json:
        print(json.dumps({"prompt": options.text, "edits": options.edit, "continuations": found}))
    else:
        if known := meanings(edits, load_labels(options.artifacts, model)):
            console.print(Text(known, "dim"), soft_wrap=True)
        console.print(side_by_side(options.text, found))


def _sampling(options: argparse.Namespace, context: int) -> Sampling:
    tokens = default_tokens(context) if options.tokens is None else options.tokens
    if not 1 <= tokens <= 10**6:
        raise UserError("--tokens must be from 1 to a million")
    try:
        checked_temperature(options.temperature)
    except ValueError as error:
        raise UserError(f"--temperature {options.temperature:g}: {error}") from None
    if not 0 <= options.seed < 2**63:
        raise UserError("--seed must be from 0 to 2^63 - 1")
    return Sampling(tokens, 0.0 if options.greedy else options.temperature, options.seed)


def _edits(options: argparse.Namespace, config: ConceptFields) -> list[Written]:
    if options.before_selection and options.base:
        raise UserError("--before-selection: the base model's edits are of active latents; leave it or --base out")
    if options.edit and config.mixing == "none" and (options.command == "steer" or not options.base):
        advice = "`generate --base` edits the base model"
        raise UserError(f"--edit: this model mixes no concepts (mixing: none), so edits change nothing; {advice}")
    return [parse_edit(each, config.num_concepts, before_selection=options.before_selection) for each in options.edit]
