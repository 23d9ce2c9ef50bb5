"""Every step of `unrefuse evaluate`: ask one model, or two, grade, report; grade again; compare."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unrefuse.config import RunConfig
from unrefuse.detector.refusal import DETECTOR
from unrefuse.engine.endpoint import Endpoint
from unrefuse.engine.generate import Reply, reply_to
from unrefuse.engine.served import (
    endpoint_of,
    forget_replies,
    served_replies,
    thinking_of,
)
from unrefuse.engine.vllm import adapter_rank, import_vllm, vllm_replies
from unrefuse.errors import UnrefuseError, first_line
from unrefuse.jobs.outlook import questions
from unrefuse.jobs.prepare import clock
from unrefuse.jobs.save import check_out, new_folder
from unrefuse.jsontext import json_text
from unrefuse.metrics.benchmarks import check_benchmarks, run_benchmarks
from unrefuse.metrics.judges import (
    Judge,
    agreement,
    as_reply,
    check_judge,
    judge_of,
    judged_lines,
)
from unrefuse.metrics.perplexity import perplexities
from unrefuse.metrics.quality import Reference, divergences, head_of, make_reference
from unrefuse.metrics.record import write_whole
from unrefuse.metrics.transcripts import (
    FILE,
    Line,
    When,
    detected,
    line_of,
    read_transcripts,
    to_text,
)
from unrefuse.models.checkpoint import checkpoint_hash
from unrefuse.models.device import release_memory
from unrefuse.models.load import Model, find_checkpoint, load_folder
from unrefuse.models.tokenizer import load_tokenizer
from unrefuse.progress import stderr
from unrefuse.prompts.chat import placed
from unrefuse.prompts.pairs import load_pairs
from unrefuse.prompts.sets import (
    SETS,
    Prompt,
    check_place,
    check_prompts,
    limited,
    load_prompts,
    prompts_hash,
    read_imports,
    select,
)
from unrefuse.report.evaluation import REPORT, WHENS, Evaluation
from unrefuse.report.lines import LIBRARIES, command_line, peak_rss_mib
from unrefuse.report.page import try_report
from unrefuse.textfile import parse_json, read_text


@dataclass(frozen=True)
class Options:
    """What an evaluation does beside asking the model of its RunConfig, which may be a folder, a
    hub name or, as `against`, what is served at `openai:URL#MODEL`.

    `benchmarks` are names of lm-eval tasks, found in `benchmark_path` too,
    `adapter`, for vLLM, the edit of the model as a LoRA adapter.
    """

    against: str | None = None
    benchmarks: tuple[str, ...] = ()
    benchmark_path: Path | None = None
    adapter: Path | None = None


def run_evaluate(config: RunConfig, options: Options = Options()) -> Evaluation:
    """Asks `config.model`, and before it the original where one is named, and writes the report
    and the replies to `config.out`. One model is loaded at a time; of the original's only the
    head is kept, for the divergence.

    Raises UnrefuseError for a mistake in usage or input. A judge that fails leaves the folder with
    the grades of the built-in detector, and its replies can be graded again.
    """
    out = check_out(config.require_out())
    served = _endpoints(config, options)
    _check_backend(config, options)
    judge = judge_of(config)
    check_benchmarks(options.benchmarks, options.benchmark_path)
    asked = _prompts(config)
    ask = _by_server if served else _by_vllm if config.backend == "vllm" else _by_torch
    with new_folder(out) as made:  # before the work, so that its end can't be refused a place
        seconds: dict[str, float] = {}
        lines, parts = ask(config, options, asked, seconds)
        parts |= {
            "config": config.model_dump(mode="json") | {"prompts_sha256": prompts_hash(asked)},
            "imports": list(config.imports),
            "seconds": {step: round(s, 2) for step, s in seconds.items()},
            "peak_rss_mib": peak_rss_mib(),
            "out": str(config.out),
            "command": command_line(),
            "versions": {name: version(name) for name in LIBRARIES}
            | {"python": platform.python_version(), "machine": platform.machine()},
        }
        found = Evaluation(lines, DETECTOR, None, parts)
        _write(found, made)
    if served:
        forget_replies(config)
    if judge:
        go_on = f"the replies are in {config.out}: `unrefuse evaluate --transcripts {config.out}`"
        found = _graded(found, judge, f"{go_on} --judge ... goes on")
        _write(found, out)
    return found


def _check_backend(config: RunConfig, options: Options) -> None:
    """Raises UnrefuseError for what the backend can't do, and where it is not installed."""
    if config.backend == "torch":
        if options.adapter:
            raise UnrefuseError("--adapter needs --backend vllm: add that, or leave out --adapter")
        return
    if options.against:
        raise UnrefuseError(
            "vLLM loads one model: name the original as MODEL and its edit as --adapter DIR (of "
            "`unrefuse export --lora`), or evaluate both one by one and use --compare"
        )
    if options.benchmarks:
        raise UnrefuseError("--benchmarks run on --backend torch: leave out one of the two")
    import_vllm()
    if options.adapter:
        adapter_rank(options.adapter)


def _endpoints(config: RunConfig, options: Options) -> dict[When, Endpoint]:
    """The models that are served, by when; none where models are to be loaded. Raises UnrefuseError
    for a served one beside another, and for what needs weights."""
    named: dict[When, str | None] = {"before": options.against, "after": config.model}
    found = {w: e for w, name in named.items() if (e := endpoint_of(name, config))}
    if found and len(found) < sum(name is not None for name in named.values()):
        raise UnrefuseError(
            "one model is served and one is not: serve both, or evaluate both one by one and use "
            "--compare"
        )
    if found and options.benchmarks:
        raise UnrefuseError("--benchmarks need the weights, not a server: leave out one of the two")
    return found


def _by_server(
    config: RunConfig,
    options: Options,
    asked: Sequence[Prompt],
    seconds: dict[str, float],
) -> tuple[list[Line], dict[str, Any]]:
    endpoints = _endpoints(config, options)
    thinking = {
        when: thinking_of(e, config.reply_tokens, config.thinking_tokens)
        for when, e in endpoints.items()
    }
    stderr.print("a server gives replies only: KL, quality and perplexity are left out")
    prompts = [p.text for p in asked]
    replies, models = {}, {}
    for when, endpoint in endpoints.items():
        with clock(seconds, f"replies {when}"):
            replies[when], tokens = served_replies(endpoint, config, prompts, thinking[when], when)
        models[when] = {"name": endpoint.name, "sha256": None, "dtype": None, "tokens": tokens}
    return _from_replies(asked, replies, models)


def _by_vllm(
    config: RunConfig,
    options: Options,
    asked: Sequence[Prompt],
    seconds: dict[str, float],
) -> tuple[list[Line], dict[str, Any]]:
    folder = find_checkpoint(config)
    with clock(seconds, "replies"), placed(asked):
        found = vllm_replies(folder, config, [p.text for p in asked], options.adapter)
    names: dict[When, str] = {"after": config.model}
    if options.adapter:
        names = {"before": config.model, "after": f"{config.model} + {options.adapter}"}
    sha256 = checkpoint_hash(folder)
    models = {
        when: {"name": name, "sha256": sha256, "dtype": config.dtype}
        for when, name in names.items()
    }
    return _from_replies(asked, dict(zip(names, found, strict=True)), models)


def _from_replies(
    asked: Sequence[Prompt],
    replies: dict[When, list[Reply]],
    models: dict[When, dict[str, Any]],
) -> tuple[list[Line], dict[str, Any]]:
    """Replies only: divergence and perplexity need states, which nothing but weights gives."""
    lines = [
        line_of(p, r, when, models[when]["name"])
        for when, answers in replies.items()
        for p, r in zip(asked, answers, strict=True)
    ]
    models = {when: {"parameters": None} | facts for when, facts in models.items()}
    return lines, {"models": models, "perplexity": None, "benchmarks": {}}


def _by_torch(
    config: RunConfig,
    options: Options,
    asked: Sequence[Prompt],
    seconds: dict[str, float],
) -> tuple[list[Line], dict[str, Any]]:
    """Replies, divergence, perplexity and benchmarks, of one model after the other."""
    names = dict(zip(WHENS, (options.against, config.model), strict=True))
    configs = {w: config.model_copy(update={"model": n}) for w, n in names.items() if n}
    if options.against:  # the revision is the model's
        configs["before"] = configs["before"].model_copy(update={"revision": None})
    folders = {when: find_checkpoint(c) for when, c in configs.items()}
    if options.against:
        _check_same_tokens(folders, names, config)
    parts: dict[str, Any] = {"models": {}, "perplexity": {}, "benchmarks": {}}
    lines: list[Line] = []
    reference: Reference | None = None
    for when, folder in folders.items():
        with clock(seconds, "load"):
            model = load_folder(folder, configs[when], configs[when].model)
            with placed(asked):
                model.encode([p.text for p in asked])
        _tell(model)
        stderr.print(questions(model, [p.text for p in asked], config.reply_tokens))
        with clock(seconds, f"replies {when}"):
            replies = reply_to(model, [p.text for p in asked], config.reply_tokens, when)
        kl: dict[str, tuple[float, int]] = {}
        with clock(seconds, "divergence"):
            if when == "before":
                reference, answered = _reference(model, asked, replies)
            elif reference is not None:
                rows = divergences(model, reference)
                kl = {p: (float(s), int(n)) for p, (s, n) in zip(answered, rows, strict=True)}
        lines += [
            line_of(p, r, when, model.name, kl.get(p.text) if p.set == "baseline" else None)
            for p, r in zip(asked, replies, strict=True)
        ]
        with clock(seconds, "perplexity"):
            parts["perplexity"][when] = perplexities(model)
        with clock(seconds, "benchmarks"):
            if options.benchmarks:
                parts["benchmarks"][when] = run_benchmarks(
                    model, options.benchmarks, options.benchmark_path, config.limit, config.seed
                )
        parts["models"][when] = {
            "name": model.name,
            "sha256": checkpoint_hash(folder),
            "parameters": model.network.num_parameters(),
            "dtype": str(model.network.dtype).removeprefix("torch."),
        }
        del model
        release_memory()
    return lines, parts


def regrade(folder: Path, judge: Judge | None, out: Path | None = None) -> Evaluation:
    """Grades the replies in `folder` again, by `judge` or the built-in detector of today, without
    a model. Written to `out` where one is named; `folder` is never changed. Raises
    UnrefuseError."""
    if out:
        check_out(out)
    if judge:
        check_judge(judge)
    lines = read_transcripts(folder)
    file = folder / REPORT
    try:
        record = parse_json(read_text(file))
        kept = ("models", "perplexity", "benchmarks", "config", "imports", "seconds",
                "peak_rss_mib", "out", "versions")  # fmt: skip
        parts = {key: record[key] for key in kept}
        config = parts["config"]
        numbers = {"seed": int(config["seed"]), "retention_bound": float(config["retention_bound"])}
        parts["config"] = config | numbers
    except (ValueError, KeyError, TypeError) as error:
        raise UnrefuseError(f"cannot read {file}: {first_line(error)}") from None
    lines = [replace(x, grade=detected(x), judge=DETECTOR) for x in lines]
    parts |= {"out": str(out) if out else None, "command": command_line()}
    found = Evaluation(lines, DETECTOR, None, parts)
    if judge:
        found = _graded(found, judge, "nothing was written")
    if out:
        with new_folder(out) as made:
            _write(found, made)
    return found


def _graded(found: Evaluation, judge: Judge, otherwise: str) -> Evaluation:
    try:
        lines = judged_lines(judge, found.lines)
    except UnrefuseError as error:
        raise UnrefuseError(f"{error}; {otherwise}") from None
    agreed = agreement((line.prompt, as_reply(line)) for line in lines)
    return replace(found, lines=lines, judge=judge.name, agreement=agreed)


def _write(found: Evaluation, folder: Path) -> None:
    write_whole(folder / FILE, to_text(found.lines))
    write_whole(folder / REPORT, json_text(found.to_json(), indent=2) + "\n")
    try_report(folder)


def _prompts(config: RunConfig) -> list[Prompt]:
    """What is asked: the test split of the three sets, where a set that an import gives takes the
    place of the configured one, and the matched pairs of the test split. Nothing is learned here,
    so all prompts of an import are asked."""
    configured = load_prompts(config.model_copy(update={"imports": ()}))
    prompts = [p for name in SETS for p in select(configured, name, "test")]
    imported = [replace(p, split="test") for p in read_imports(config.imports)]
    given = {p.set for p in imported}
    for name in given:
        check_place(config, name)
    if config.limit:
        imported = limited(imported, config.limit)
    prompts = [p for p in prompts if p.set not in given] + imported
    if not prompts:
        raise UnrefuseError(
            "no test prompts are left in these languages: leave out --lang, or name more"
        )
    prompts += [p for p in load_pairs(config) if p.split == "test"]
    check_prompts(prompts)
    return prompts


def _reference(
    model: Model, asked: Sequence[Prompt], replies: Sequence[Reply]
) -> tuple[Reference | None, list[str]]:
    """The original on its own answers to baseline prompts, and these prompts."""
    pairs = [
        (p.text, r)
        for p, r in zip(asked, replies, strict=True)
        if p.set == "baseline" and r.grade == "answered"
    ]
    if not pairs:
        return None, []
    texts = [text for text, _ in pairs]
    reference = make_reference(model, texts, [reply for _, reply in pairs])
    return replace(reference, head=head_of(model)), texts


def _check_same_tokens(
    folders: dict[When, Path], names: dict[When, str | None], config: RunConfig
) -> None:
    """Raises UnrefuseError where two models do not share a vocabulary: the divergence is by
    token."""
    before, after = (
        load_tokenizer(folders[when], config.trust_remote_code).get_vocab() for when in WHENS
    )
    if before != after:
        raise UnrefuseError(
            f"{names['after']} and {names['before']} have different vocabularies, so one is no "
            "edit of the other: leave out --against"
        )


def _tell(model: Model) -> None:
    stderr.print(
        f"{model.name}: {model.layers} layers, {model.network.num_parameters() / 1e6:.0f} M "
        f"parameters, {str(model.network.dtype).removeprefix('torch.')} on {model.device}, "
        f"batches of {model.batch_size}",
    )
