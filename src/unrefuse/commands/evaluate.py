"""`unrefuse evaluate`: any model by itself or against its original, stored replies, two runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from unrefuse.commands.options import (
    AllowPickle,
    Backend,
    Baseline,
    BatchSize,
    Column,
    DataSplit,
    Dequantize,
    Device,
    DeviceMap,
    Dtype,
    Imports,
    Json,
    JudgeInput,
    JudgeLabel,
    JudgeName,
    Keep,
    Lang,
    Limit,
    Probe,
    ReplyTokens,
    RetentionBound,
    Revision,
    Seed,
    Stream,
    Target,
    TestFile,
    ThinkingTokens,
    TrustRemoteCode,
    settings_of,
)
from unrefuse.commands.output import print_json, show, tell


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A local folder, a hub name, demo, or openai:URL#MODEL: what is served there.",
            metavar="MODEL",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The original: also removal, retention, quality, KL.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for report and replies.")] = None,
    transcripts: Annotated[
        Path | None, typer.Option(help="Grade the replies in this folder again; no MODEL.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Compare the replies in two folders; no MODEL.", metavar="DIR1 DIR2"),
    ] = None,
    judge: JudgeName = None,
    judge_label: JudgeLabel = None,
    judge_input: JudgeInput = None,
    imports: Imports = None,
    benchmarks: Annotated[
        str | None, typer.Option(help="lm-eval tasks, as arc_easy,hellaswag.")
    ] = None,
    benchmark_path: Annotated[
        Path | None, typer.Option(help="Folder with lm-eval tasks of your own.")
    ] = None,
    target: Target = None,
    baseline: Baseline = None,
    keep: Keep = None,
    test_target: TestFile = None,
    test_baseline: TestFile = None,
    test_keep: TestFile = None,
    column: Column = None,
    split: DataSplit = None,
    lang: Lang = None,
    limit: Limit = None,
    retention_bound: RetentionBound = None,
    reply_tokens: ReplyTokens = None,
    thinking_tokens: ThinkingTokens = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    batch_size: BatchSize = None,
    stream: Stream = None,
    backend: Backend = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="With vllm: the edit of MODEL, of `export --lora`; before and after."),
    ] = None,
    seed: Seed = None,
    allow_pickle: AllowPickle = None,
    trust_remote_code: TrustRemoteCode = None,
    dequantize: Dequantize = None,
    probe: Probe = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL on the test split, by itself or --against its original; edits nothing."""
    given = locals()
    from unrefuse.errors import UnrefuseError

    jobs = [model is not None, transcripts is not None, compare is not None]
    if sum(jobs) != 1:
        raise UnrefuseError("name one of MODEL, --transcripts DIR and --compare DIR1 DIR2")
    if compare:
        _compare(*compare, as_json)
        return
    from unrefuse.jobs.evaluate import Options, regrade, run_evaluate
    from unrefuse.metrics.judges import parse_judge
    from unrefuse.report.evaluation import evaluation_tables

    if transcripts:
        judged_by = parse_judge(
            judge or "builtin", judge_label, judge_input, bool(trust_remote_code)
        )
        found = regrade(transcripts, judged_by, out)
    else:
        options = Options(
            against,
            tuple(name for name in (benchmarks or "").split(",") if name),
            benchmark_path,
            adapter,
        )
        found = run_evaluate(_settings(given), options)
    if as_json:
        print_json(found.to_json())
        return
    show(evaluation_tables(found))
    if out:
        tell(f"\nsaved: {out} (report: {out}/evaluation.json, replies: {out}/transcripts.jsonl)")


def _settings(given: dict[str, Any]) -> Any:
    """The RunConfig. Against the demo, an edit of it is asked what the demo is asked."""
    config = settings_of(
        given | {"model": "demo" if given["against"] == "demo" else given["model"], "config": None}
    )
    return config.model_copy(update={"model": given["model"]})


def _compare(first: Path, second: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from unrefuse.metrics.transcripts import compare, read_transcripts
    from unrefuse.report.evaluation import comparison_tables

    comparison = compare(read_transcripts(first), read_transcripts(second))
    if as_json:
        print_json(asdict(comparison))
    else:
        show(comparison_tables(comparison))
