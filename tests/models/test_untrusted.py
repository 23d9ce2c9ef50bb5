"""Model folders that are off in one thing: one line that names what, never a traceback."""

import codecs
import json

import pytest
import torch

from tests import pico
from unrefuse.engine.generate import reply_to
from unrefuse.errors import UnrefuseError, first_line, raised_as
from unrefuse.models.load import load_model
from unrefuse.models.tokenizer import end_of_turn, load_tokenizer
from unrefuse.prompts.chat import ChatError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return pico.save(tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good, tmp_path):
    """A copy that a test may spoil."""
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def loads(folder, **options):
    return load_model(pico.run_config(str(folder), batch_size=2, **options))


def says_in_one_line(folder, says, **options):
    with pytest.raises(UnrefuseError, match=says) as caught:
        loads(folder, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rms_norm_eps": "1e-6"}, "config.json: .*rms_norm_eps.* expected float, got str"),
        ({"num_hidden_layers": "3"}, "config.json: .*expected int, got str"),
        ({"num_attention_heads": 0}, "cannot read .*config.json: "),
        ({"id2label": "a"}, "cannot read .*config.json: "),
        ({"dtype": "floaty"}, "cannot read .*config.json: .*floaty"),
        ({"model_type": 7}, "cannot read .*config.json: .*model type `7`"),
        ({"auto_map": {"AutoConfig": 5}}, "cannot read .*config.json: "),
        ({"rope_parameters": {"rope_type": "nope", "rope_theta": 1e4}}, "cannot load .*nope"),
        ({"pad_token_id": 300}, "cannot load .*Padding_idx"),
        ({"head_dim": 0}, "cannot load the model in "),
        ({"text_config": [1]}, "cannot load the model in "),
        ({"sliding_window": "4096"}, "cannot be run: "),
        (
            {"rms_norm_eps": float("nan")},
            "not all finite in float32: the model's weights, c",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_config_that_is_off(folder, values, says, stream):
    change(folder / "config.json", **values)
    says_in_one_line(folder, says, stream=stream)


def test_a_config_of_other_shapes(folder):
    change(folder / "config.json", num_key_value_heads=4)
    says_in_one_line(folder, r"k_proj.weight has the shape \(16, 32\) .* and \(32, 32\) by")


def test_a_model_without_layers(folder):
    for layers in (0, -1):
        change(folder / "config.json", num_hidden_layers=layers)
        with pytest.raises(UnrefuseError, match=f"no layers: its config.json says {layers}"):
            loads(folder)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("tokenizer.json", POINTER, "tokenizer.json is a Git LFS pointer"),
        ("tokenizer.json", "[]", "cannot read .*tokenizer.json: it is not a JSON object"),
        ("tokenizer_config.json", POINTER, "_config.json is a Git LFS pointer"),
        ("generation_config.json", "{ not json", "cannot read .*generation_config.json: "),
        ("generation_config.json", "[]", "cannot read .*generation_config.json: "),
        ("generation_config.json", '{"max_new_tokens": "x"}', "cannot read .*generation_config"),
        ("generation_config.json", '{"eos_token_id": [258, "x"]}', "config.json: .* 'x' is no"),
        ("generation_config.json", '{"eos_token_id": [[258]]}', r"config.json: .* \[258\] is no"),
        ("chat_template.jinja", "{% for m in messages %}", "template fails, line 1: Unexpected"),
        ("chat_template.jinja", "{# \u00e9 #}", "cannot read the tokenizer in "),
    ],
)
def test_a_file_beside_the_weights_that_is_off(folder, name, text, says):
    (folder / name).write_bytes(text.encode("latin-1"))
    says_in_one_line(folder, says)


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
     "model.safetensors.index.json"],
)  # fmt: skip
def test_a_byte_order_mark_is_named_with_what_to_do(folder, name):
    """transformers reads none of these files with one, so no program would load what is saved."""
    file = folder / name
    if not file.exists():
        file.write_text(json.dumps({"weight_map": {"x": "model.safetensors"}}))
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    says_in_one_line(folder, f"{name} begins with a byte order mark.* save it as UTF-8 without one")


def test_a_tokenizer_of_a_newer_version(folder):
    change(folder / "tokenizer.json", model={"type": "BPE2", "vocab": {}})
    says_in_one_line(folder, "cannot read the tokenizer in .*, or needs a newer version")


def test_a_tokenizer_in_a_form_that_is_not_read(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    says_in_one_line(folder, "cannot read the tokenizer in .*there is no tokenizer.json in it")


def test_the_chat_template_of_a_processor_is_taken(folder):
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": pico.TEMPLATE}))
    assert loads(folder).tokenizer.chat_template == pico.TEMPLATE
    (folder / "chat_template.json").write_text("{}")
    says_in_one_line(folder, "has no chat template")


def test_a_prompt_longer_than_what_the_model_reads(folder):
    change(folder / "config.json", max_position_embeddings=128)
    model = loads(folder)
    with pytest.raises(ChatError, match="more than the model reads") as caught:
        model.encode(["short", "long " * 50])
    assert caught.value.index == 1


def test_a_folder_without_a_tokenizer(folder):
    for file in folder.glob("token*"):
        file.unlink()
    says_in_one_line(folder, "has no tokenizer: no tokenizer.json is in it")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_max_length": "abc"}, "the tokenizer fails: "),
        ({"eos_token": 5}, "cannot read the tokenizer in .*eos_token"),
        ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, "cannot read the tokenizer in "),
        ({"chat_template": ["a", "b"]}, "cannot read the tokenizer in "),
        ({"chat_template": 5}, "the chat template fails: "),
        ({"chat_template": [{"name": "rag", "template": "y"}]}, r"several chat templates \(rag\)"),
    ],
)
def test_a_tokenizer_config_that_is_off(folder, values, says):
    if "chat_template" in values:
        (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", **values)
    says_in_one_line(folder, says)


def test_a_tokenizer_of_a_bigger_model(folder):
    file = folder / "tokenizer.json"
    added = json.loads(file.read_text())["added_tokens"]
    token = added[0] | {"id": 259, "content": "<|im_end|>"}
    change(file, added_tokens=[*added, token])
    assert len(reply_to(loads(folder), ["Hi"], 8)) == 1  # nobody says it
    (folder / "chat_template.jinja").write_text(pico.TEMPLATE.replace("<|end|>", "<|im_end|>"))
    says_in_one_line(folder, r"'<\|im_end\|>' the id 259, .* embeddings for 259 tokens only")


def test_special_tokens_of_plain_text_beyond_the_embeddings(folder):
    before = {"SpecialToken": {"id": "B", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [before, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"B": {"id": "B", "ids": [9999], "tokens": ["B"]}},
    }
    change(folder / "tokenizer.json", post_processor=processor)
    says_in_one_line(folder, "the id 9999, and the model has embeddings for 259")


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class MyConfig(LlamaConfig):
    model_type = "mymodel"
"""


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("import einops_not_there", "packages that were not found .* einops_not_there"),
        ("class MyModel: config_class = 1 / 0", "division by zero"),
        ("raise SystemError('no')", "cannot load the model in .*: no"),
        ("def broken(:", "cannot load the model in "),
    ],
)
def test_code_of_a_model_that_fails(folder, model, says, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "c"))
    auto = {"AutoConfig": "conf.MyConfig", "AutoModelForCausalLM": "model.MyModel"}
    change(folder / "config.json", model_type="mymodel", auto_map=auto)
    (folder / "conf.py").write_text(CODE)
    (folder / "model.py").write_text(model)
    says_in_one_line(folder, "contains custom code .*trust its code, add --trust-remote-code")
    says_in_one_line(folder, says, trust_remote_code=True)


def test_what_is_no_error_of_a_library_is_let_through():
    for error in (KeyboardInterrupt, SystemExit, UnrefuseError):
        with pytest.raises(error), raised_as("cannot read x"):
            raise error
    says = r"^cannot read x: KeyError$"
    with pytest.raises(UnrefuseError, match=says) as caught, raised_as("cannot read x"):
        raise KeyError
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_first_line_of_an_error_goes_on_where_it_only_begins():
    assert first_line(ValueError("field 'a':\n    expected int\nmore")) == "field 'a': expected int"
    assert first_line(ValueError("\n\n one\n two")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(KeyError("hidden_act")) == "KeyError: 'hidden_act'"


BOTH = {"eos_token_id": [258, 7]}


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": 0}, {}, [0, 258]),
        (BOTH, {}, [7, 258]),
        ({"eos_token_id": None}, {"eos_token_id": 9}, [258]),
        (None, {"eos_token_id": [0, 3]}, [0, 3, 258]),
        (None, {"eos_token_id": None, "text_config": {"eos_token_id": 4}}, [4, 258]),
        (None, {}, [258]),  # and not 2, which is what the class says
    ],
)
def test_a_turn_ends_by_the_tokenizer_and_by_the_generation_config(
    folder, generation, config, ends
):
    file = folder / "config.json"
    stated = {k: v for k, v in json.loads(file.read_text()).items() if k != "eos_token_id"}
    file.write_text(json.dumps(stated | config))
    (folder / "generation_config.json").unlink()
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = load_tokenizer(folder, False)
    assert end_of_turn(folder, tokenizer) == ends
    tokenizer.eos_token = None
    assert end_of_turn(folder, tokenizer) == [e for e in ends if e != 258 or generation == BOTH]


@pytest.mark.parametrize("end", [0, 7, 258])
def test_a_reply_ends_at_each_end_of_turn(folder, end):
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    model = loads(folder)
    head = model.network.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(259).index_fill_(0, torch.tensor(end), 1e4))
    assert [reply.tokens for reply in reply_to(model, ["Hi", "Why?"], 12)] == [(), ()]
