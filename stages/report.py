"""Stage `report`: a page, a table for the terminal, and files for DVC, from the metrics of the other stages."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from math import exp
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from cocomix.check import external
from cocomix.explain.atlas import Atlas
from cocomix.params import CocomixParams, Params, load
from cocomix.plumbing.artifact import MANIFEST, Artifact, Work, digest_of
from cocomix.report.cards import read_cards
from cocomix.report.comparison import BASELINE, MethodResult, compare
from cocomix.report.concepts import mean_concepts, read_examples
from cocomix.report.conclusions import conclusions
from cocomix.report.costs import Cost, SupervisionStage, costs, supervision_stages
from cocomix.report.drawing import looks, swatch
from cocomix.report.facts import (
    ATLAS,
    BASE_CURVE,
    SAE_CURVE,
    STEERING,
    Pipeline,
    check_pipeline,
    pipeline_files,
    read_base_curve,
    read_pipeline,
    read_run,
    read_sae_curve,
    run_files,
)
from cocomix.report.figures import accuracies, differences, learning_curves, loss_given_labels, training_curve
from cocomix.report.numbers import headline, numbers, write_curves
from cocomix.report.steering_figures import effects_by_cost, effects_by_strength, steering_rows, steering_says
from cocomix.report.tuning import Tuning, decisive, decisive_outside, own_weight, read_sweep, sweep_files, tuning
from cocomix.report.usage import StageUsage, made_with, stage_usages, startup_share
from cocomix.report.wording import (
    answers,
    caveats,
    changed,
    duration,
    fed_labels,
    forms_say,
    inside,
    labels,
    listing,
    loss_weight,
    lowest,
    matching,
    name_of,
    over_seeds,
    si,
    signed,
    table,
    tuned_says,
    variant,
    visible,
    within,
)
from cocomix.report.writings import read_writings
from cocomix.statistics import CONFIDENCE, REPLICATES
from cocomix.steering.averages import Sweep, read_sweeps
from stages.stage import ARTIFACTS, main, produce, to_json

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SHIPPED = Path("presets/default.yaml")


def run(params: Params) -> None:
    """Make artifacts/report: index.html and summary.txt."""
    methods, seeds = params.pretrain.methods, params.pretrain.seeds
    files = [*pipeline_files(), *sweep_files(), BASE_CURVE, SAE_CURVE, ATLAS / MANIFEST, STEERING / MANIFEST] + [
        path for method in methods for seed in seeds for path in run_files(method, seed)
    ]
    pipeline = read_pipeline()
    runs = {method: [read_run(method, seed) for seed in seeds] for method in methods}
    check_pipeline(pipeline, {f"{method}-{each.seed}": each for method, some in runs.items() for each in some})
    spent = costs(pipeline, params)
    results = compare(
        runs,
        {method: supervision_stages(section) for method, section in params.pretrain.listed.items()},
        spent,
        params.report.label_runs,
    )
    usages = stage_usages(pipeline, [run for each in results for run in each.runs])
    sweeps = read_sweeps(Artifact(STEERING).file("effects.parquet"))
    differs = changed(params, load(SHIPPED))
    outside = decisive_outside(external.noted() or {})
    swept = [run for path in sweep_files() for run in read_sweep(path) if run.outside in (None, outside)]
    tuned = tuning(params, pipeline.methods.widths, swept)

    def compute(work: Work) -> Mapping[str, Any]:
        contents = {
            "index.html": page(params, pipeline, results, spent, usages, sweeps, tuned, differs),
            "summary.txt": summary(params, results, tuned),
        }
        for name, content in contents.items():
            with work.write(name) as pending:
                pending.path.write_text(content, encoding="utf-8")
        (work.side / "metrics.json").write_bytes(to_json(numbers(pipeline, results, spent, usages, sweeps, tuned)))
        (work.side / "headline.json").write_bytes(to_json(headline(pipeline, results)))
        write_curves(work.side / "curves.csv", runs)
        return {}

    produce(
        "report",
        ARTIFACTS / "report",
        {str(path): digest_of(path) for path in files} | {TEMPLATE.name: digest_of(TEMPLATE)},
        params.report.model_dump()
        | {
            "pretrain": params.pretrain.model_dump(mode="json"),
            "differs": differs,
            "decisive": decisive(params),
            "outside": outside,
            "attribution": params.attribution.model_dump(
                include={"score", "sign", "scope", "value", "integrated_steps"}
            ),
            "distribution": params.distribution.model_dump(include={"draws"}),
            "sae": params.sae.model_dump(include={"source", "epochs"}),
            "activations": params.activations.model_dump(include={"keep"}),
            "evaluate": params.evaluate.model_dump(include={"stride", "task_limit"}),
        },
        compute,
        {
            "metrics.json": Path("metrics/compare.json"),
            "headline.json": Path("metrics/headline.json"),
            "curves.csv": Path("plots/curves.csv"),
        },
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "si": si,
        "number": lambda value, form: format(value, form),
        "signed": signed,
        "within": within,
        "loss_weight": loss_weight,
        "listing": listing,
        "duration": duration,
        "visible": visible,
        "exp": exp,
    }
    return environment.get_template(TEMPLATE.name)


def page(
    params: Params,
    pipeline: Pipeline,
    results: Sequence[MethodResult],
    spent: Mapping[SupervisionStage, Cost],
    usages: Sequence[StageUsage],
    sweeps: Sequence[Sweep],
    tuned: Tuning | None,
    differs: Sequence[tuple[str, str, str]],
) -> str:
    """The HTML page, without scripts and external resources.

    Args:
        differs: the parameters that differ from the shipped ones: see `changed`.
    """
    concepts = {each.method: mean_concepts(each.concepts) for each in results if each.concepts}
    drawn = looks(params.pretrain.forms)
    needed = {source for each in results for source in each.sources}
    seed = params.pretrain.seeds[0]
    atlas = Atlas(ATLAS)
    reference = next((each for each in results if each.method == BASELINE), results[0])
    return _template().render(
        title=params.report.title,
        label_runs=params.report.label_runs,
        limit=params.corpus.limit[0],
        pretrain=params.pretrain,
        evaluate=params.evaluate,
        seeds=len(params.pretrain.seeds),
        draws=params.distribution.draws,
        labels=labels(params.attribution),
        fed_labels=fed_labels(params.attribution),
        names={method: name_of(method) for method in drawn},
        baseline=BASELINE,
        confidence=f"{CONFIDENCE:.0%}",
        replicates=f"{REPLICATES:,}",
        answers=answers(results),
        conclusions=conclusions(results, params.pretrain, params.attribution, pipeline, sweeps),
        caveats=caveats(results, params.pretrain, tuned),
        lowest=lowest(results),
        matching=matching(results, params.pretrain),
        variants=_variants(params),
        weights={each.method: own_weight(each.method, decisive(params)) for each in results},
        tuned=tuned,
        tuned_says=tuned_says(tuned) if tuned else "",
        swatches={method: Markup(swatch(look)) for method, look in drawn.items()},
        pipeline=pipeline,
        results=results,
        reference=reference.runs[0].training,
        reference_name=inside(reference.method),
        costs={source: cost for source, cost in spent.items() if source in needed},
        supervised=[name_of(each.method) for each in results if each.sources],
        curves=[Markup(learning_curves(results, against, drawn)) for against in ("tokens", "flops", "seconds")],
        base_curve=Markup(training_curve("base-curve", read_base_curve(), "validation loss (nats a token)")),
        sae_curve=Markup(training_curve("sae-curve", read_sae_curve(), "variance unexplained")),
        differences=Markup(differences(results, drawn)),
        task_accuracies=Markup(accuracies(results, drawn)),
        concepts=concepts,
        loss_given_labels={
            method: Markup(loss_given_labels(method, each.mixing, drawn[method]))
            for method, each in concepts.items()
            if each.mixing
        },
        concept_k={
            method: section.concept_k
            for method, section in params.pretrain.listed.items()
            if isinstance(section, CocomixParams)
        },
        examples=read_examples(f"{next(iter(concepts))}-{seed}", atlas) if concepts else [],
        writings=read_writings(params.pretrain.methods, seed, atlas),
        cards=read_cards(atlas)._asdict(),
        steering={
            "sweeps": sweeps,
            "says": steering_says(sweeps),
            "figures": [(title, Markup(svg)) for title, svg in effects_by_strength(sweeps, drawn)],
            "cost": Markup(effects_by_cost(sweeps, drawn)),
            "rows": steering_rows(sweeps, drawn),
        }
        if sweeps
        else None,
        stages=usages,
        startup_share=startup_share(usages),
        made=made_with(pipeline, [run for each in results for run in each.runs]),
        differs=differs,
        settings=yaml.safe_dump({"pretrain": params.pretrain.model_dump(mode="json")}, sort_keys=False).strip(),
    )


def _variants(params: Params) -> list[str]:
    """Sentences on how the CoCoMix of this run differs from the released code, and its forms from it."""
    differs = variant(params.pretrain.cocomix) if "cocomix" in params.pretrain.methods else ""
    return [*([f"This is a variant of CoCoMix: {differs}."] if differs else []), *forms_say(params.pretrain)]


def summary(params: Params, results: Sequence[MethodResult], tuned: Tuning | None) -> str:
    """The text that `make run` prints at the end: a table and the answers."""
    header = ["method", "width", "parameters (active)", "tokens", "training", "validation loss", "test loss"]
    has_savings = any(each.saving for each in results)
    rows = [[*header, "test perplexity", *["tokens to reach NTP's final loss"] * has_savings]]
    for each in results:
        training, saving = each.runs[0].training, each.saving
        needs = "not reached" if saving else ""
        if saving and saving.spent:
            needs = f"{si(saving.spent.tokens.mean)} tokens, {saving.spent.tokens_saved.mean:.0%} saved"
        elif saving and saving.reached == saving.seeds:
            needs = "before the first evaluation"
        elif saving and saving.reached:
            needs = f"in {saving.reached} of {saving.seeds} seeds"
        rows.append(
            [
                each.method,
                str(training.d_model),
                f"{si(training.parameters.stored)} ({si(training.parameters.active)})",
                si(training.tokens),
                si(training.flops, "FLOP"),
                over_seeds(each.corpora["validation"].loss, ".3f"),
                over_seeds(each.corpora["test"].loss, ".3f"),
                over_seeds(each.corpora["test"].perplexity, ".1f"),
                *[needs] * has_savings,
            ]
        )
    text = [" ".join(each) for each in answers(results)]
    if text:
        text.append(" ".join([caveats(results, params.pretrain, tuned), matching(results, params.pretrain)]))
    text += filter(None, [" ".join(_variants(params))])
    paragraphs = [textwrap.fill(each, 110) for each in text]
    return "\n\n".join([table(rows), *paragraphs, f"The whole page: {ARTIFACTS}/report/index.html"]) + "\n"


if __name__ == "__main__":
    main(run)
