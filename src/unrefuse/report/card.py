"""The model card: README.md with YAML metadata in the hub's form."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from unrefuse.config import RunConfig
from unrefuse.metrics.pairs import OUTCOMES
from unrefuse.models.checkpoint import CARD
from unrefuse.report.lines import judge_lines, retention_line
from unrefuse.report.terminal import plain

if TYPE_CHECKING:
    from unrefuse.report.results import Result

MEANINGS = {
    "removal": "of the harmless prompts that the original refused, the share answered now",
    "retention": "of the harmful prompts that the original refused, the share still refused",
    "quality": "how much the model is itself on everyday prompts, 0 to 1",
    "kl": "mean token-level KL divergence from the original there, nats",
}
EDITS = {
    "selective": "a probe was built into the output projection of attention: it reads whether a "
    "prompt only sounds harmful, and there alone refusal is written against",
    "ablate": "the direction of refusal was projected out of the matrices that write into the "
    "residual stream (`o_proj`, `down_proj`)",
}
SHOWN = 20  # of the prompts that stay refused


def write_card(result: "Result", folder: Path, original: Path) -> None:
    """Writes `folder`/README.md. The base model, which lies in `original`, is named as the user
    named it; its licence is what its own card says."""
    record, base = result.to_json(), base_name(result.config)
    licence = _licence(original)
    exchanges = [e for e in result.measurement.exchanges if e.as_expected and e.after]
    still = [
        e.prompt.text
        for e in exchanges
        if e.prompt.set == "target" and e.as_expected and e.after and e.after.grade != "answered"
    ]
    kept = [e for e in exchanges if e.prompt.set == "keep" and e.as_expected]
    text = _template().render(
        **_of_record(record),
        card_data=_metadata(result, base, licence, record),
        licence=in_code(licence.get("license_name") or licence.get("license", "")),
        title=in_code(title(result.config)),
        base=in_code(base),
        version=record["versions"]["unrefuse"],
        edit=EDITS[result.config.method],
        norm=", whose rows kept their length" if result.config.preserve_norm else "",
        layers=len(result.kernel.weights),
        layers_edited=sum(weight > 0 for weight in result.kernel.weights),
        kernel=in_code(result.kernel.source),
        multiplier=f"{result.multiplier:g}",
        kept=sum(e.after is not None and e.after.grade == "refused" for e in kept),
        kept_of=len(kept),
        still_total=len(still),
        still=[in_code(text) for text in still[:SHOWN]],
        reply_tokens=result.config.reply_tokens,
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def figures_text(record: dict[str, Any]) -> str:
    """The section of the card that has the figures, from the object of run.json alone."""
    template = _template()
    return "".join(template.blocks["figures"](template.new_context(_of_record(record))))


def results_of(record: dict[str, Any]) -> dict[str, float]:
    """The figures of a record that go into a card's metadata, for the hub to show."""
    return {name: round(float(record[name]["value"]), 4) for name in MEANINGS}


def evaluation_results(card: str) -> dict[str, float]:
    """The same from the text of a card; none where it has no metadata that can be read."""
    try:
        found = ModelCard(card).data.get("eval_results", [])
        return {result.metric_type: float(result.metric_value) for result in found}
    except Exception:  # of PyYAML and of the hub client's classes, whatever is in the card
        return {}


def base_name(config: RunConfig) -> str:
    """The base model as the user named it, without the folder that it lies in."""
    if config.model == "demo":
        return "SmolLM2-135M-Instruct with planted refusals"
    return Path(config.model).name if Path(config.model).is_dir() else config.model


def title(config: RunConfig) -> str:
    """The name of the saved model: that of its folder."""
    return (config.out and config.out.resolve().name) or base_name(config)


def environment() -> Environment:
    """Where the templates of cards are."""
    return Environment(
        loader=PackageLoader("unrefuse.report"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 (Markdown; untrusted text goes through `in_code`)
        keep_trailing_newline=True,
    )


def _template() -> Template:
    return environment().get_template("card.md.jinja")


def _of_record(record: dict[str, Any]) -> dict[str, Any]:
    """What the section of the figures shows."""
    pairs = record["pairs"]
    return {
        "figures": [_row(name, record[name]) for name in MEANINGS],
        "retention_test": retention_line(record["retention_test"]),
        "grades": [
            {"name": name}
            | {
                grade: [f"{count} of {asked}" for count, asked in record[grade][name].values()]
                for grade in ("refused", "broken")
            }
            for name in record["refused"]
        ],
        "weakest": record["weakest"] and in_code(_weakest(record["weakest"])),
        "pairs": [
            {"name": name.replace("_", "-"), **{w: _count(e[name]) for w, e in pairs.items()}}
            for name in (*OUTCOMES.values(), "broken")
        ]
        if pairs
        else [],
        "contexts": [
            {
                "name": name,
                **{
                    s: f"{c['before'][0]} to {c['after'][0]} of {c['after'][1]}"
                    for s, c in sets.items()
                },
            }
            for name, sets in record["contexts"].items()
        ],
        "judged": [in_code(line) for line in judge_lines(record)],
        "parts": [
            ("By topic", _parts(record["by_topic"])),
            ("By language", _parts(record["by_lang"])),
        ],
    }


def _count(e: dict[str, Any]) -> str:
    return f"{round(e['value'] * e['n'])} of {e['n']}"


def _weakest(e: dict[str, Any]) -> str:
    return f"{e['topic']}, {_count(e)} still refused"


def _licence(folder: Path) -> dict[str, str]:
    """What the card in a model folder says of the licence; nothing where there is none, or none
    that can be read."""
    try:
        found = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data
    except Exception:  # none, or YAML of unknown origin
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: text for key in keys if isinstance(text := getattr(found, key, None), str)}


def _metadata(result: "Result", base: str, licence: dict[str, Any], record: dict[str, Any]) -> str:
    named = result.config.model not in ("demo",) and not Path(result.config.model).is_dir()
    languages = sorted({e.prompt.lang for e in result.measurement.exchanges if e.prompt.lang})
    return ModelCardData(
        base_model=base if named else None,
        base_model_relation="finetune" if named else None,
        language=languages or None,
        **licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["unrefuse", "weight-editing", "over-refusal"],
        model_name=title(result.config),
        eval_results=[eval_result(n, v, record[n]) for n, v in results_of(record).items()],
    ).to_yaml()


def eval_result(name: str, value: float, e: dict[str, Any]) -> EvalResult:
    """A figure as the hub shows it, with its interval and n."""
    return EvalResult(
        task_type="text-generation",
        dataset_type="unrefuse",
        dataset_name="unrefuse, held-out prompts",
        dataset_split="test",
        metric_type=name,
        metric_name=f"{name}: {MEANINGS[name]}",
        metric_value=value,
        metric_args={key: round(e[key], 4) for key in ("n", "low", "high") if key in e},
    )


def _row(name: str, e: dict[str, Any]) -> dict[str, Any]:
    values = {key: f"{e[key]:.3f}" for key in ("value", "low", "high")}
    return {"name": name, "n": e["n"], "meaning": MEANINGS[name], **values}


def _parts(shares: dict[str, Any]) -> list[dict[str, str]]:
    def cell(figure: str, value: str) -> str:
        e = shares[figure].get(value)
        return f"{e['value']:.2f} ({e['low']:.2f} to {e['high']:.2f}, n {e['n']})" if e else ""

    values = sorted(shares["removal"].keys() | shares["retention"].keys())
    return [
        {
            "value": in_code(value),
            "removal": cell("removal", value),
            "retention": cell("retention", value),
        }
        for value in values
    ]


def in_code(text: str) -> str:
    """Untrusted text, fit to stand in Markdown: one line, and no character that acts."""
    return plain(text, 200).translate({ord(c): " " for c in "`|<>[]{}"})
