"""`unrefuse evaluate`: any model by itself or against its original, stored replies, two runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unrefuse.commands.options import NO_MODEL, Json, takes
from unrefuse.commands.output import print_json, print_out, show
from unrefuse.errors import UnrefuseError

if TYPE_CHECKING:
    from unrefuse.config import RunConfig


@takes(
    *("model", "prompts", "run", "output", "retention_bound"),
    defaults={"model": NO_MODEL},
)
def evaluate(
    settings: "RunConfig",
    against: Annotated[
        str | None, typer.Option(help="The original: adds removal, retention, quality and KL.")
    ] = None,
    transcripts: Annotated[
        Path | None, typer.Option(help="Grade the replies in this folder again, without MODEL.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Compare the replies in two folders, without MODEL.", metavar="DIR1 DIR2"
        ),
    ] = None,
    benchmarks: Annotated[
        str | None, typer.Option(help="Tasks of lm-eval, such as arc_easy,hellaswag.")
    ] = None,
    benchmark_path: Annotated[
        Path | None, typer.Option(help="Folder with lm-eval tasks of your own.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="With vllm: measure MODEL with this adapter of `export --lora` too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL on the test split, by itself or --against its original; edits nothing.

    MODEL can also be openai:URL#MODEL, a model on an OpenAI-compatible server."""
    jobs = [settings.model != NO_MODEL, transcripts is not None, compare is not None]
    if sum(jobs) != 1:
        raise UnrefuseError("name one of MODEL, --transcripts DIR and --compare DIR1 DIR2")
    if compare:
        _compare(*compare, as_json)
        return
    if transcripts:
        from unrefuse.jobs.evaluate import regrade
        from unrefuse.metrics.judges import parse_judge

        judge = parse_judge(
            settings.judge, settings.judge_label, settings.judge_input, settings.trust_remote_code
        )
        found = regrade(transcripts, judge, settings.out)
    else:
        from unrefuse import api

        found = api.evaluate(
            settings,
            against=against,
            benchmarks=tuple(name for name in (benchmarks or "").split(",") if name),
            benchmark_path=benchmark_path,
            adapter=adapter,
        )
    if as_json:
        print_json(found.to_json())
        return
    from unrefuse.report.evaluation import evaluation_tables

    show(evaluation_tables(found))
    if out := settings.out:
        print_out(
            f"\nsaved: {out} (figures: {out}/evaluation.json, replies: {out}/transcripts.jsonl)"
        )
        print_out(f"report: {out}/report.html")


def _compare(first: Path, second: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from unrefuse.metrics.transcripts import compare, read_transcripts
    from unrefuse.report.evaluation import comparison_tables

    comparison = compare(read_transcripts(first), read_transcripts(second))
    if as_json:
        print_json(asdict(comparison))
    else:
        show(comparison_tables(comparison))
