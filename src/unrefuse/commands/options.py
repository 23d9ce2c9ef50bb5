"""The options of commands: those that set a RunConfig come from its fields, by `takes`.

An option of a command's own is a parameter of its function, as typer has it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_origin

import typer
from typer.core import TyperCommand
from typer.main import get_command

from unrefuse.commands import output
from unrefuse.errors import UnrefuseError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from unrefuse.config import RunConfig

Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object and nothing else.", rich_help_panel="Output"
    ),
]
NO_MODEL = "-"  # the model of a configuration that is wanted for its other settings

# What people use first stands above the groups.
FIRST = ("out", "limit", "target", "keep", "tune", "strength", "judge", "device", "stream")
FLAGS = {"file": "--kernel", "data_split": "--split", "languages": "--lang", "imports": "--import"}
# Fine points that a configuration file sets, and no option.
FILE_ONLY = {
    *("harmful", "ridge", "first_multiplier", "multiplier_step", "max_multiplier"),
    *("model_sha256", "prompts_sha256"),
}
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Selection(NamedTuple):
    """Which settings a command has options for; see `takes`."""

    names: Sequence[str]
    without: Sequence[str]
    defaults: Mapping[str, Any]


def takes(
    *names: str,
    without: Sequence[str] = (),
    defaults: Mapping[str, Any] = NOTHING,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For a `Command` whose first parameter is a RunConfig, made from its options.

    `names` are the settings that it has options for, by group (`config.GROUPS`) or by field, less
    those in `without`; "config" is a file with settings. `defaults` count where neither an option
    nor the file says otherwise; where there is one for `model`, MODEL may be left out.
    """

    def mark(function: Callable[..., None]) -> Callable[..., None]:
        selection = Selection(names, without, defaults)

        @wraps(function)
        def command(ctx: typer.Context, **rest: Any) -> None:
            function(_configured(ctx, selection), **rest)

        context = Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        rest = [*signature(function).parameters.values()][1:]
        vars(command).update(selection=selection, __signature__=Signature([context, *rest]))
        command.__annotations__ = {}
        return command

    return mark


def _configured(ctx: typer.Context, selection: Selection) -> "RunConfig":
    from unrefuse.config import KernelConfig, load_config

    given = {
        key: None if value is False or value == () else value for key, value in ctx.obj.items()
    }
    file = given.pop("config", None)
    if given.get("model") is None and file is None and "model" not in selection.defaults:
        words = [word.strip("[]{}") for word in ctx.command.collect_usage_pieces(ctx)[1:]]
        line = " ".join([ctx.command_path, *words, *(["--out DIR"] if "out" in given else [])])
        raise UnrefuseError(
            f"which model? type `{line}`, where MODEL is a local folder, a hub name, or demo"
        )
    kernel = {name: given.pop(name) for name in KernelConfig.model_fields if name in given}
    return load_config(file, selection.defaults, kernel=kernel, **given)


class Command(TyperCommand):
    """A command with the options that it `takes`, and those that every command has.

    They are made when they are asked for: to read the configuration's fields takes long, and
    `unrefuse --help` and other commands need none of them.
    """

    settings: Sequence[str] | None = None

    def get_params(self, ctx: Any) -> Any:
        if self.settings is None:
            selection: Selection | None = getattr(self.callback, "selection", None)
            made = _options(_parameters(selection)) if selection else []
            self.settings = [option.name for option in made]
            arguments = [p for p in self.params if p.param_type_name == "argument"]
            options = [p for p in self.params if p.param_type_name != "argument"]
            self.params = [
                *arguments,
                *made,
                *options,
                *_options(signature(_every).parameters.values()),
            ]
        return super().get_params(ctx)

    def invoke(self, ctx: Any) -> Any:
        ctx.obj = {name: ctx.params.pop(name) for name in self.settings or ()}
        return super().invoke(ctx)


def _options(parameters: Iterable[Parameter]) -> list[Any]:
    """typer's own form of these parameters."""

    def command() -> None: ...

    vars(command)["__signature__"] = Signature([*parameters])
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return get_command(app).params


def _parameters(selection: Selection) -> Iterator[Parameter]:
    """One parameter a setting: MODEL, what people use first, and the rest by group."""
    fields = _fields(selection)
    if "model" in fields:
        _, field = fields.pop("model")
        yield _parameter("model", str, typer.Argument(metavar="MODEL", help=field.description))
    if "config" in selection.names:
        option = typer.Option(
            "--config", help="Settings from a TOML file, or from a run's run.json."
        )
        yield _parameter("config", Path, option)
    for name in (*(n for n in FIRST if n in fields), *(n for n in fields if n not in FIRST)):
        group, field = fields[name]
        flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
        panel = None if name in FIRST else group.capitalize()
        yield _parameter(
            name,
            _kind(field.annotation),
            typer.Option(flag, help=_help(field), rich_help_panel=panel),
        )


def _parameter(name: str, kind: Any, form: Any) -> Parameter:
    annotation = Annotated[kind | None, form]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _fields(selection: Selection) -> "dict[str, tuple[str, FieldInfo]]":
    """The group and the field of every setting that a command has an option for."""
    from unrefuse.config import GROUPS, KernelConfig

    found: dict[str, tuple[str, FieldInfo]] = {}
    for group, settings in GROUPS.items():
        for name, field in settings.model_fields.items():
            if {name, group} & {*selection.names}:
                parts = KernelConfig.model_fields if name == "kernel" else {name: field}
                found |= {key: (group, part) for key, part in parts.items()}
    return {name: found[name] for name in found if name not in FILE_ONLY | {*selection.without}}


def _kind(annotation: Any) -> Any:
    """What a field takes on the command line, where None is left out and a file is one of two."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not NoneType)
    return list[str] if get_origin(annotation) is tuple else annotation


def _help(field: "FieldInfo") -> str:
    default = field.default
    no_default = default is None or default is False or default == ()
    return f"{field.description}" + ("" if no_default else f" Default: {default}.")


def _set_quiet(value: bool) -> None:
    from unrefuse.progress import stderr

    stderr.quiet = value
    if value:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # before that library is imported


def _set_verbose(value: bool) -> None:
    output.verbose = value


def _every(
    *,
    quiet: Annotated[
        bool,
        typer.Option(
            *("--quiet", "-q"),
            help="Show no progress, only results and errors.",
            callback=_set_quiet,
            expose_value=False,
            rich_help_panel="Output",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            *("--verbose", "-v"),
            help="Show all tables, and where an error comes from.",
            callback=_set_verbose,
            expose_value=False,
            rich_help_panel="Output",
        ),
    ] = False,
) -> None:
    """The options of every command."""
