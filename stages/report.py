"""Stage `report`: one page, one table for the terminal and one file for DVC, from the metrics of the other stages."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cocomix.artifact import Work, digest_of
from cocomix.params import Params
from cocomix.report.comparison import BASELINE, MethodResult, Spread, compare
from cocomix.report.facts import Pipeline, pipeline_files, read_pipeline, read_run, run_files
from cocomix.report.figures import learning_curves, swatch
from cocomix.report.wording import NAMES, answers, caveats, duration, matching, over_seeds, si, table, variant
from stages.stage import ARTIFACTS, main, produce, to_json

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def run(params: Params) -> None:
    """Make artifacts/report: index.html and summary.txt."""
    methods, seeds = params.pretrain.methods, params.pretrain.seeds
    files = pipeline_files() + [path for method in methods for seed in seeds for path in run_files(method, seed)]
    pipeline = read_pipeline()
    results = compare({method: [read_run(method, seed) for seed in seeds] for method in methods})

    def compute(work: Work) -> Mapping[str, Any]:
        contents = {
            "index.html": page(params, pipeline, results),
            "summary.txt": summary(params, results),
        }
        for name, content in contents.items():
            with work.write(name) as pending:
                pending.path.write_text(content, encoding="utf-8")
        (work.side / "metrics.json").write_bytes(to_json({each.method: numbers(each) for each in results}))
        return {}

    produce(
        "report",
        ARTIFACTS / "report",
        {str(path): digest_of(path) for path in files} | {TEMPLATE.name: digest_of(TEMPLATE)},
        params.report.model_dump()
        | params.pretrain.model_dump(include={"methods", "seeds", "match", "kd", "cocomix"})
        | {"score": params.attribution.score},
        compute,
        {"metrics.json": Path("metrics/report.json")},
    )


def page(params: Params, pipeline: Pipeline, results: Sequence[MethodResult]) -> str:
    """The HTML page: no script, and nothing that is fetched."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"si": si, "over_seeds": over_seeds, "number": format, "duration": duration}
    curves = [
        Markup(learning_curves(results, "tokens", "Validation loss against training tokens")),
        Markup(learning_curves(results, "flops", "Validation loss against training compute")),
    ]
    return environment.get_template(TEMPLATE.name).render(
        title=params.report.title,
        pretrain=params.pretrain,
        attribution=params.attribution,
        names=NAMES,
        baseline=BASELINE,
        answers=answers(results),
        caveats=caveats(results, params.pretrain),
        matching=matching(results, params.pretrain),
        variant=variant(params.pretrain.cocomix),
        swatches={each.method: Markup(swatch(each.method)) for each in results},
        pipeline=pipeline,
        results=results,
        first=results[0].runs[0],
        curves=curves,
    )


def summary(params: Params, results: Sequence[MethodResult]) -> str:
    """The table that `make run` ends with."""
    header = [
        "method",
        "width",
        "parameters (active)",
        "tokens",
        "training",
        "validation loss",
        "test loss",
        "test perplexity",
    ]
    header.append("to NTP's final loss")
    rows = [header]
    for each in results:
        training, saving = each.runs[0].training, each.saving
        needs = "" if each.method == BASELINE else "not reached"
        if saving and saving.tokens and saving.tokens_saved:
            needs = f"{si(saving.tokens.mean)} tokens, {saving.tokens_saved.mean:.0%} saved"
        rows.append(
            [
                each.method,
                str(training.d_model),
                f"{si(training.parameters.stored)} ({si(training.parameters.active)})",
                si(training.tokens),
                si(training.flops, "FLOP"),
                over_seeds(each.validation_loss, ".3f"),
                over_seeds(each.test_loss, ".3f"),
                over_seeds(each.test_perplexity, ".1f"),
                needs,
            ]
        )
    text = [" ".join(each) for each in answers(results)]
    if text:
        text.append(" ".join([caveats(results, params.pretrain), matching(results, params.pretrain)]))
    if "cocomix" in params.pretrain.methods and (differs := variant(params.pretrain.cocomix)):
        text.append(f"This is a variant of CoCoMix: {differs}.")
    paragraphs = [textwrap.fill(each, 110) for each in text]
    return "\n\n".join([table(rows), *paragraphs, f"The whole page: {ARTIFACTS}/report/index.html"]) + "\n"


def numbers(result: MethodResult) -> dict[str, Any]:
    """Figures of one method, for `dvc metrics show` and `dvc metrics diff`."""
    training, saving = result.runs[0].training, result.saving
    spreads = ("validation_loss", "test_loss", "test_perplexity", "test_bits_per_byte")
    return {
        "d_model": training.d_model,
        "parameters": training.parameters.model_dump(),
        "tokens": training.tokens,
        "flops": training.flops,
        **{name: getattr(result, name)._asdict() for name in spreads},
        "down_to_baseline": saving
        and {key: value._asdict() if isinstance(value, Spread) else value for key, value in saving._asdict().items()},
    }


if __name__ == "__main__":
    main(run)
