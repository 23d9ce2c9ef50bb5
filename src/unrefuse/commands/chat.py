"""`unrefuse chat`: a conversation in the terminal, or one reply."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unrefuse.commands.options import NO_MODEL, takes
from unrefuse.commands.output import print_err, print_out, show
from unrefuse.errors import UnrefuseError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from unrefuse.config import RunConfig
    from unrefuse.jobs.chat import Answer, Chat

WIDE = 100  # columns of a terminal in which two replies stand side by side
HELP = """/strength 0.8   the edit at this strength: 0 is none, 1 the measured one, 2 the maximum
/peak 0.55      the centre of its kernel, 0 to 1 of the depth
/width 0.15     the width of its kernel
/reset          forget the conversation
/save FILE      write the conversation to FILE.jsonl or FILE.md
/help           show this help
/quit           end, as Ctrl-D does; Ctrl-C stops a reply
A line that begins with a space is always a prompt."""


@takes(
    *("reply_tokens", "thinking_tokens", "revision", "dtype", "device", "device_map", "stream"),
    *("allow_pickle", "trust_remote_code", "dequantize", "discover"),
    defaults={"model": NO_MODEL, "reply_tokens": 512, "batch_size": 1},
)
def chat(
    settings: "RunConfig",
    model: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A model, as for `edit`. An edited model answers without its edit and with it.",
        ),
    ],
    other: Annotated[
        str | None, typer.Argument(metavar="B", help="Another model, beside A.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask this, print the reply, and end.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="An edit of A, the original: a folder that `edit` or `tune` wrote.", metavar="RUN"
        ),
    ] = None,
) -> None:
    """Chat with a model, with two side by side, or with one without its edit and with it."""
    from unrefuse.jobs.chat import Chat, open_sides

    config = settings.model_copy(update={"model": model})
    talking = Chat(open_sides(config, other, plan), system, config.reply_tokens)
    if prompt is not None:
        named = len(talking.sides) if other else 1  # an edit answers for its original, too
        replies = talking.ask(prompt, range(len(talking.sides))[-named:])
        _answer(replies)
        if not all(reply.said for reply in replies):
            raise typer.Exit(1)
        return
    _converse(talking)


def _converse(talking: "Chat") -> None:
    """Prompts and commands, line by line, until there are no more. What goes wrong with one is
    told, and the conversation goes on."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # `input` edits lines with it
        titles = " | ".join(_title(side.title) for side in talking.sides)
        print_err(f"{titles}: ask; /help shows the commands, Ctrl-D ends")
    for line in _lines(at_terminal):
        try:
            if line.startswith("/"):
                if line.split()[0] == "/quit":
                    return
                _command(talking, line)
            elif line.strip():
                prompt = line.strip()
                replies = talking.ask(prompt)
                try:
                    _answer(replies)
                except KeyboardInterrupt:
                    if not at_terminal:
                        raise
                    print_err("(stopped)")
                talking.keep(prompt, replies)
        except UnrefuseError as error:
            print_err(f"unrefuse: {error}")


def _lines(at_terminal: bool) -> Iterator[str]:
    while True:
        try:
            yield input("> " if at_terminal else "")
        except EOFError:
            if at_terminal:
                print_out("")
            return
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            print_err("\n(Ctrl-D ends)")
        except OSError as error:  # of the prompt, which `input` prints
            raise UnrefuseError(f"cannot print: {error.strerror}") from None
        except UnicodeDecodeError:
            if not at_terminal:
                raise UnrefuseError("standard input is not UTF-8 text") from None
            print_err("(that is not UTF-8 text)")


def _command(talking: "Chat", line: str) -> None:
    from unrefuse.jobs.chat import save_chat

    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name == "help":
        print_err(HELP)
    elif name == "reset":
        talking.turns.clear()
        print_err("a new conversation begins")
    elif name == "save":
        if not rest:
            raise UnrefuseError("/save needs the name of a new file: /save FILE")
        save_chat(talking, Path(rest))
        print_err(f"saved: {rest}")
    elif name in ("strength", "peak", "width"):
        _turn(talking, name, rest)
    else:
        raise UnrefuseError(f"there is no command /{_title(name)}: /help lists the commands")


def _turn(talking: "Chat", name: str, rest: str) -> None:
    """Sets one of the dials of the edit; without a number, shows them."""
    side = talking.sides[-1]
    if side.edit is None:
        raise UnrefuseError(
            f"/{name} works on an edit: start `unrefuse chat EDITED`, or `unrefuse chat ORIGINAL "
            "--plan RUN`"
        )
    if rest:
        try:
            value = float(rest)
        except ValueError:
            raise UnrefuseError(f"/{name} takes a number, not {_title(rest)}") from None
        side.edit = side.edit.changed(name, value)
    state = side.edit.describe()
    state += "" if state == "strength 1" else " (not measured)"
    if missed := side.edit.missed():
        state += f"; {missed:.0%} of this kernel lies on layers that the plan does not edit"
    print_err(state)


def _answer(replies: Sequence["Answer"]) -> None:
    """Shows replies while they are written: side by side where there is room."""
    from rich.console import Console

    screen = Console(markup=False, highlight=False, emoji=False)
    if len(replies) > 1 and screen.is_terminal and screen.width >= WIDE:
        _side_by_side(replies, screen)
    else:
        for reply in replies:
            if len(replies) > 1:
                show(_bold(f"{_title(reply.title)}:"))
            _one_after_the_other(reply)
    for reply in replies:
        whose = f"{_title(reply.title)}: " if len(replies) > 1 else ""
        if not reply.said:
            more = "; raise --thinking-tokens" if reply.thoughts else ""
            print_err(f"{whose}(no reply{more})")
        elif not reply.whole:
            print_err(f"{whose}(cut at the token limit; raise --reply-tokens)")


def _one_after_the_other(reply: "Answer") -> None:
    from rich.text import Text

    from unrefuse.report.terminal import visible

    shown = False
    try:
        for thought, said in reply.pieces():
            if thought and sys.stdout.isatty():
                show(Text(visible(thought), style="dim"), end="", soft_wrap=True)
            if said:
                if reply.thoughts and not shown and sys.stdout.isatty():
                    print_out("\n")
                print_out(visible(said), end="")
                shown = True
    finally:
        print_out("")


def _side_by_side(replies: Sequence["Answer"], screen: Any) -> None:
    """In columns. While they grow, the screen shows their last lines; at the end, all."""
    from rich.live import Live
    from rich.segment import Segment

    class End:
        def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
            for line in console.render_lines(_columns(replies), options)[1 - console.height :]:
                yield from line
                yield Segment.line()

    try:
        with Live(End(), console=screen, transient=True, refresh_per_second=8):
            for _ in zip_longest(*(reply.pieces() for reply in replies)):
                pass
    finally:
        if any(reply.thoughts or reply.said for reply in replies):
            show(_columns(replies))


def _columns(replies: Sequence["Answer"]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from unrefuse.report.terminal import visible

    table = Table(box=box.MINIMAL, expand=True, pad_edge=False)
    for reply in replies:
        table.add_column(_bold(_title(reply.title)), ratio=1, overflow="fold")
    table.add_row(
        *(
            Text.assemble(
                (visible(reply.thoughts) + "\n\n" * bool(reply.thoughts and reply.said), "dim"),
                visible(reply.said),
            )
            for reply in replies
        )
    )
    return table


def _title(text: str) -> str:
    from unrefuse.report.terminal import plain

    return plain(text, 60)


def _bold(text: str) -> "Text":
    from rich.text import Text

    return Text(text, style="bold")
