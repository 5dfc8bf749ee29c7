"""Recipes: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from audiossl import methods
from audiossl.config import typed_yaml
from audiossl.errors import RecipeError, UsageError
from audiossl.recipe import loading as recipe
from audiossl.recipe import resolved

GOOD = """\
# A recipe for the tests.
#
# More words.
method:
  name: supervised
  loss: bce
model:
  architecture: {name: dscnn, stem: 32}
  frontend: {preset: yamnet}
  head: {name: linear}
data:
  train: clips.csv
train:
  epochs: 2
  lr: 1e-3
"""

BOMB = "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\n"


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


# (what is wrong, the recipe, line that must be named or None, what the message must say)
BAD: list[tuple[str, str | bytes, int | None, str]] = [
    ("top key", GOOD + "trian: {}\n", 16, "recipe trian: unknown key (did you mean 'train'?)"),
    ("key in train", changed("lr:", "lrr:"), 15,
     "recipe train.lrr: unknown key (did you mean 'lr'?)"),
    ("key in data", changed("train: clips", "trian: clips"), 12, "recipe data.trian: unknown key"),
    ("key in model", changed("head:", "haed:"), 10, "recipe model.haed: unknown key"),
    ("key in method", changed("loss:", "losss:"), 6,
     "method.losss: unknown key (did you mean 'loss'"),
    ("key in augment", changed("clips.csv", "clips.csv\n  augment: {gian_db: [0, 1]}"), 13,
     "recipe data.augment.gian_db: unknown key (did you mean 'gain_db'?)"),
    ("key like nothing", GOOD + "zzzz: 1\n", 16, "(one of: base, method"),
    ("number is text", changed("1e-3", "fast"), 15,
     "recipe train.lr: expected a number, got 'fast'"),
    ("number is bool", changed("1e-3", "true"), 15, "train.lr: expected a number, got 'true'"),
    ("number is yes", changed("1e-3", "yes"), 15, "train.lr: expected a number, got 'yes'"),
    ("number is a list", changed("1e-3", "[1, 2]"), 15, "expected a number, got a list of 2"),
    ("number is keys", changed("1e-3", "{a: 1}"), 15, "expected a number, got keys (a)"),
    ("number is empty", changed("1e-3", ""), 15, "expected a number, got nothing"),
    ("number is null", changed("1e-3", "null"), 15, "expected a number, got nothing"),
    ("number is a date", changed("1e-3", "2024-01-01"), 15, "expected a number"),
    ("number is hex", changed("1e-3", "0x10"), 15, "expected a number, got '0x10'"),
    ("number with comma", changed("1e-3", "0,001"), 15, "expected a number, got '0,001'"),
    ("nan", changed("1e-3", ".nan"), 15, "expected a finite number, got '.nan'"),
    ("nan by name", changed("1e-3", "nan"), 15, "expected a finite number"),
    ("inf", changed("1e-3", ".inf"), 15, "expected a finite number"),
    ("minus inf", changed("1e-3", "-.inf"), 15, "expected a finite number"),
    ("too large", changed("1e-3", "1e999"), 15, "recipe train.lr: too large: '1e999'"),
    ("above its bound", changed("1e-3", "1000"), 15, "train.lr: expected at most 100, got 1000"),
    ("zero", changed("1e-3", "0"), 15, "train.lr: expected a number above 0, got 0"),
    ("negative", changed("1e-3", "-1e-3"), 15, "train.lr: expected a number above 0, got -0.001"),
    ("octal", changed("1e-3", "0123"), 15, "train.lr: expected a number, got '0123'"),
    ("sexagesimal", changed("1e-3", "12:30"), 15, "expected a number, got '12:30'"),
    ("half a step", changed("lr: 1e-3", "batch_size: 1.5"), 15,
     "batch_size: expected a whole number"),
    ("integer is bool", changed("lr: 1e-3", "seed: true"), 15, "seed: expected a whole number"),
    ("integer is text", changed("lr: 1e-3", "seed: abc"), 15,
     "seed: expected a whole number, got 'abc'"),
    ("huge integer", changed("lr: 1e-3", "log_every: 99999999999999999999"), 15, "too large"),
    ("integer as long as a book", changed("lr: 1e-3", "log_every: 1" + "0" * 5000), 15,
     "too large"),
    ("huge as float", changed("lr: 1e-3", "log_every: 1e300"), 15, "log_every: too large"),
    ("batch of none", changed("lr: 1e-3", "batch_size: 0"), 15,
     "batch_size: expected at least 1, got 0"),
    ("fraction over one", changed("clips.csv", "c\n  max_bad_fraction: 1.5"), 13,
     "at most 1, got 1.5"),
    ("bool is a number", changed("clips.csv", "c\n  balanced: 1"), 13,
     "data.balanced: expected true or false, got '1'"),
    ("bool is yes", changed("clips.csv", "c\n  balanced: yes"), 13,
     "expected true or false, got 'yes'"),
    ("choice", changed("loss: bce", "loss: bcee"), 6, "unknown value 'bcee' (did you mean 'bce'?)"),
    ("choice is a list", changed("loss: bce", "loss: [bce]"), 6, "unknown value a list of 1"),
    ("schedule", changed("lr: 1e-3", "schedule: cosin"), 15, "did you mean 'cosine'"),
    ("text is a list", changed("clips.csv", "[a, b]"), 12,
     "data.train: expected text, got a list of 2"),
    ("list is text", changed("clips.csv", "c\n  labels: Dog"), 13, "data.labels: expected a list"),
    ("list of keys", changed("clips.csv", "c\n  labels: [{a: 1}]"), 13,
     "data.labels.0: expected text"),
    ("label twice", changed("clips.csv", "c\n  labels: [Dog, Dog]"), 13, "a label is given twice"),
    ("no label", changed("clips.csv", "c\n  labels: []"), 13, "data.labels: empty"),
    ("pair of three", changed("lr: 1e-3", "betas: [0.9, 0.99, 1]"), 15, "expected 2 values, got 3"),
    ("pair with text", changed("lr: 1e-3", "betas: [0.9, high]"), 15,
     "train.betas.1: expected a number"),
    ("pair out of bounds", changed("lr: 1e-3", "betas: [0.9, 1.5]"), 15,
     "train.betas: expected two"),
    ("section is text", GOOD.replace("train:\n  epochs: 2\n  lr: 1e-3", "train: x"), 13,
     "recipe train: expected keys, got 'x'"),
    ("method is text", changed("method:\n  name: supervised\n  loss: bce", "method: supervised"), 4,
     "recipe method: expected keys, got 'supervised'"),
    ("no method", GOOD.replace("method:", "out: x\nx_method:"), 5, "x_method: unknown key"),
    ("method is not there", GOOD.partition("model:")[2].join(["model:", ""]), 1,
     "recipe method: missing"),
    ("method without name", changed("name: supervised", "loss: ce").replace("  loss: bce\n", ""), 5,
     "recipe method.name: missing"),
    ("unknown method", changed("supervised", "supervisd"), 5, "did you mean 'supervised'"),
    ("unknown architecture", changed("dscnn,", "dscn,"), 8, "did you mean 'dscnn'"),
    ("architecture argument", changed("stem: 32", "stems: 32"), 8,
     "model.architecture.stems: architecture 'dscnn' has no such argument (did you mean 'stem'?)"),
    ("no frontend", changed("  frontend: {preset: yamnet}\n", ""), 8, "model.frontend: missing"),
    ("from and architecture", changed("  head:", "  from: tagger\n  head:"), 7, "either `from` or"),
    ("nothing to train", changed("  architecture: {name: dscnn, stem: 32}\n", ""), 7,
     "either `from` or"),
    ("two lengths", changed("epochs: 2", "epochs: 2\n  steps: 9"), 13,
     "either `steps` or `epochs`"),
    ("no length", changed("  epochs: 2\n", ""), 13, "give either `steps` or `epochs`"),
    ("two kinds of data", changed("train: clips.csv", "train: a\n  folder: b"), 13,
     "`train` or `folder`"),
    ("two splits", changed("clips.csv", "c\n  valid: v\n  valid_folds: [1]"), 13,
     "give one of `valid`"),
    ("step schedule", changed("lr: 1e-3", "schedule: step"), 13, "train.step_every: missing"),
    ("parallel", changed("lr: 1e-3", "parallel: dpp"), 15, "did you mean 'ddp'"),
    ("tracker", changed("lr: 1e-3", "tracker: tensorbord"), 15, "did you mean 'tensorboard'"),
    ("compile is on", changed("lr: 1e-3", "compile: on"), 15,
     "train.compile: expected true or false, got 'on'"),
    ("no bad step", changed("lr: 1e-3", "max_bad_steps: 0"), 15,
     "train.max_bad_steps: expected at least 1, got 0"),
    ("key twice", changed("  lr: 1e-3", "  lr: 1e-3\n  lr: 2e-3"), 16,
     "recipe train.lr: given twice"),
    ("section twice", GOOD + "train: {steps: 1}\n", 16, "recipe train: given twice"),
    ("key is a list", GOOD + "? [a, b]\n: 1\n", 16, "a key must be plain text"),
    ("alias bomb", BOMB + GOOD, 1, "anchors and aliases"),
    ("anchor alone", changed("1e-3", "&x 1e-3"), 15, "anchors and aliases"),
    ("merge key", changed("lr: 1e-3", "<<: {lr: 1}"), 15, "recipe train.<<: unknown key"),
    ("python object", changed("1e-3", "!!python/object/apply:os.system ['true']"), 15,
     "is not allowed"),
    ("python name", changed("1e-3", "!!python/name:os.system"), 15, "is not allowed"),
    ("harmless tag", changed("1e-3", "!!float 1"), 15, "is not allowed"),
    ("own tag", changed("1e-3", "!env HOME"), 15, "is not allowed"),
    ("two documents", GOOD + "---\n" + GOOD, 16, "more than one document"),
    ("deep", GOOD + "x: " + "[" * 40 + "]" * 40 + "\n", 16, "nested deeper than 16 levels"),
    ("very deep", "x: " + "[" * 100_000, 1, "nested deeper than 16 levels"),
    ("not closed", changed("stem: 32}", "stem: 32"), None, "not valid YAML"),
    ("tab", changed("  lr:", "\tlr:"), None, "not valid YAML"),
    ("a list", "- a\n- b\n", 1, "recipe: expected keys, got a list of 2"),
    ("a word", "hello\n", 1, "recipe: expected keys, got 'hello'"),
    ("empty", "", None, "recipe method: missing"),
    ("too big", GOOD + "#" * 1_000_001, None, "larger than 1000 kB"),
    ("not text", b"\xff\xfe\x00x", None, "not UTF-8"),
    ("control bytes", GOOD.encode() + b"out: a\x00b\n", None, "not valid YAML"),
    ("base is missing", "base: nowhere.yaml\n" + GOOD, 1, "recipe base: no recipe 'nowhere.yaml'"),
    ("base is itself", "base: bad.yaml\n" + GOOD, None, "cannot be its own base"),
    ("base is a list", "base: [a, b]\n" + GOOD, 1, "recipe base: expected the name or path"),
    ("out is empty", GOOD + "out: ''\n", 16, "recipe out: expected a folder"),
]  # fmt: skip


def load_text(text: str | bytes, folder: Path, overrides: list[str] | None = None) -> recipe.Recipe:
    path = folder / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return recipe.load(str(path), overrides or [])


@pytest.mark.parametrize(("text", "line", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_recipes_name_line_key_and_way_out(
    text: str | bytes, line: int | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_text(text, tmp_path)
    said = caught.value.message
    assert message in said
    assert "bad.yaml" in said
    assert caught.value.exit_code == 2
    assert "\n" not in said
    if line is not None:
        assert f"bad.yaml, line {line})" in said


def test_there_are_sixty_bad_recipes() -> None:
    assert len(BAD) >= 60


def test_values_are_read_by_declared_type(tmp_path: Path) -> None:
    text = changed("lr: 1e-3", "lr: 1e-4\n  steps: 1e5\n  log_every: 1_000\n  betas: [.9, 0.95]")
    text = text.replace("  epochs: 2\n", "")
    text = text.replace("clips.csv", "no\n  labels: [yes, no, on, null_, 0123, 12:30]\n  root: ~")
    got = load_text(text, tmp_path)
    assert got.train.lr == 1e-4
    assert got.train.steps == 100_000
    assert isinstance(got.train.steps, int)
    assert got.train.log_every == 1000
    assert got.train.betas == (0.9, 0.95)
    assert got.data.train == "no"
    assert got.data.root is None
    assert got.data.labels == ["yes", "no", "on", "null_", "0123", "12:30"]
    assert got.model.architecture == {"name": "dscnn", "stem": 32}
    assert got.description == "A recipe for the tests."
    assert got.name == "bad"
    assert got.out == "runs/bad"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("-3", -3), ("1_000", 1000), ("true", True), ("False", False), ("~", None),
        ("'1'", "1"), ("yes", "yes"), ("0123", "0123"), ("12:30", "12:30"), ("1.5e3", 1500.0),
        ("2024-01-01", "2024-01-01"), ("''", ""), ("[1, a, 2.5]", [1, "a", 2.5]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)  # fmt: skip
def test_free_values(text: str, value: Any) -> None:
    got = typed_yaml.free(typed_yaml.parse(text, "test"))
    assert got == value
    assert type(got) is type(value)


def test_overrides_follow_the_same_rules(tmp_path: Path) -> None:
    overrides = [
        "train.lr=3e-4", "train.steps=7", "data.augment.gain_db=[-6, 6]", "model.head.name=linear",
        "data.folder=clips = all/", "method.loss=asymmetric", "out=runs/x", "train.clip=",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"recipe train.clip: expected a number, got nothing"):
        load_text(GOOD, tmp_path, overrides)
    got = load_text(GOOD, tmp_path, overrides[:-1])
    assert got.train.lr == 3e-4
    assert (got.train.steps, got.train.epochs) == (7, None)
    assert got.data.augment.gain_db == (-6, 6)
    assert (got.data.folder, got.data.train) == ("clips = all/", None)
    assert got.config.loss == "asymmetric"
    assert got.out == "runs/x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("train..lr=3", "expected key.path=value"),
        (
            "train.lrr=3",
            r"recipe train.lrr: unknown key (did you mean 'lr'?) (override train.lrr=3)",
        ),
        (
            "train.lr=fast",
            "recipe train.lr: expected a number, got 'fast' (override train.lr=fast)",
        ),
        ("train.lr.x=1", "recipe train.lr: expected a number, got keys (x)"),
        ("train.lr=[1", "not valid YAML"),
        ("train.lr=!!float 1", "not allowed"),
        ("base=x", "recipe base: cannot be overridden"),
        ("train=3", "recipe train: expected keys, got '3'"),
    ],
)
def test_bad_overrides(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_text(GOOD, tmp_path, [override])
    assert message in caught.value.message


def test_an_override_of_one_alternative_puts_the_other_out_of_force(tmp_path: Path) -> None:
    got = load_text(GOOD, tmp_path, ["model.from=tagger", "train.steps=5"])
    assert got.model.from_ == "tagger"
    assert got.model.architecture is got.model.frontend is None
    assert got.model.head == {"name": "linear"}
    assert got.train.epochs is None


def test_base_gives_what_the_recipe_does_not(tmp_path: Path) -> None:
    (tmp_path / "under.yaml").write_text(GOOD)
    (tmp_path / "over.yaml").write_text(
        "# Mine\nbase: under.yaml\ntrain: {lr: 2e-3, steps: 3}\nmodel: {architecture: {stem: 64}}\n"
    )
    got = recipe.load(str(tmp_path / "over.yaml"))
    assert got.train.lr == 2e-3
    assert (got.train.steps, got.train.epochs) == (3, None)
    assert got.model.architecture == {"name": "dscnn", "stem": 64}
    assert got.data.train == "clips.csv"
    assert (got.name, got.description) == ("over", "Mine")


def test_a_map_of_another_name_replaces_the_base_s(tmp_path: Path) -> None:
    (tmp_path / "under.yaml").write_text(GOOD)
    (tmp_path / "over.yaml").write_text("base: under\nmodel: {architecture: {name: vit}}\n")
    text = (tmp_path / "over.yaml").read_text().replace("under", "under.yaml")
    (tmp_path / "over.yaml").write_text(text.replace("vit", "ast"))
    assert recipe.load(str(tmp_path / "over.yaml")).model.architecture == {"name": "ast"}


def test_a_base_s_error_names_the_base_s_line(tmp_path: Path) -> None:
    (tmp_path / "under.yaml").write_text(changed("1e-3", "fast"))
    (tmp_path / "over.yaml").write_text("base: under.yaml\n")
    with pytest.raises(RecipeError, match=r"under\.yaml, line 15"):
        recipe.load(str(tmp_path / "over.yaml"))


def test_base_may_be_a_name_in_the_package(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: tiny/supervised\ntrain: {lr: 1}\n")
    assert recipe.load(str(tmp_path / "mine.yaml")).train.lr == 1


def test_circles_of_bases_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(RecipeError, match="cannot be its own base"):
        recipe.load(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("name", recipe.names())
def test_recipes_of_the_package_load_have_a_description_and_survive_a_round_trip(name: str) -> None:
    got = recipe.load(name)
    assert got.description
    assert got.name == name
    again = recipe.loads(resolved.to_yaml(got), name)
    assert again == got


def test_resolved_recipe_keeps_text_that_looks_like_something_else(tmp_path: Path) -> None:
    text = GOOD.replace(
        "clips.csv", "'1e-3'\n  labels: ['null', 'true', '12', ' a', 'b: c', '#x', é]"
    )
    text = text.replace("stem: 32", "stem: 32, widths: ['1', 'true', '~', x]")
    got = load_text(text, tmp_path)
    assert recipe.loads(resolved.to_yaml(got), got.name) == got
    assert got.model.architecture == {
        "name": "dscnn",
        "stem": 32,
        "widths": ["1", "true", "~", "x"],
    }


def test_unknown_recipe_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'tiny/supervised'"):
        recipe.load("tiny/supervise")
    with pytest.raises(RecipeError, match="not a YAML file"):
        recipe.load(__file__)


@pytest.mark.parametrize("name", methods.names())
def test_config_read_from_source_is_the_config_of_the_module(name: str) -> None:
    import dataclasses
    import typing

    from_source, imported = recipe.method_config(name), methods.load(name).Config
    for item, other in zip(
        dataclasses.fields(from_source), dataclasses.fields(imported), strict=True
    ):
        assert (item.name, item.default) == (other.name, other.default)
    assert typing.get_type_hints(from_source, include_extras=True) == typing.get_type_hints(
        imported, include_extras=True
    )


def test_a_typo_in_any_section_ends_before_torch_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from audiossl.recipe import loading as recipe
from audiossl.errors import RecipeError
for override in ("train.lrr=1", "method.losss=1", "model.architecture.widht=3", "data.x=1"):
    try:
        recipe.load("tiny/supervised", [override])
    except RecipeError as error:
        assert "did you mean" in error.message or "one of" in error.message, error.message
    else:
        raise SystemExit(f"{override} passed")
heavy = {"torch", "numpy", "rich", "soundfile"} & set(sys.modules)
raise SystemExit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_whatever_the_bytes_only_our_errors_come(data: str | bytes) -> None:
    with contextlib.suppress(RecipeError):
        recipe.loads(data if isinstance(data, str) else data.decode("latin-1"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_good_recipe_with_one_piece_replaced_gives_our_errors_or_a_recipe(data: Any) -> None:
    lines = GOOD.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    junk = st.sampled_from(
        ["&a", "*a", "!x", "{", "]", ": :", "- -", "\t", "%", "|", ">", "'", "1e309"]
    )
    lines[number] += data.draw(junk | st.text(max_size=10))
    with contextlib.suppress(UsageError):
        recipe.loads("\n".join(lines))


def test_pure_python_yaml_and_libyaml_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fast = load_text(GOOD, tmp_path)
    monkeypatch.setattr(typed_yaml, "_LOADER", yaml.SafeLoader)
    assert load_text(GOOD, tmp_path) == fast
    with pytest.raises(RecipeError, match="anchors and aliases"):
        load_text(BOMB, tmp_path)


def test_a_megabyte_of_brackets_is_refused_while_it_is_read() -> None:
    with pytest.raises(RecipeError, match="nested deeper"):
        typed_yaml.parse("[" * 900_000, "bomb")
