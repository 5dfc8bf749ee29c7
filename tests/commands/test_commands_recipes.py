"""`audiossl recipes`: ls, show, check, copy, through the installed command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Runner

from audiossl.recipe import loading as recipe


def test_ls_lists_every_recipe_with_its_description(cli: Runner) -> None:
    done = cli("recipes", "ls", "--format", "json")
    assert (done.returncode, done.stderr) == (0, b"")
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == recipe.names()
    assert all(row["description"] for row in rows)
    assert [json.loads(line) for line in cli("recipes", "ls").stdout.splitlines()] == rows
    table = cli("recipes", "ls", "--format", "table").stdout.decode().splitlines()
    assert [line.split()[0] for line in table] == recipe.names()


def test_show_gives_the_file_and_resolved_gives_all_of_it(cli: Runner) -> None:
    done = cli("recipes", "show", "tiny/supervised")
    assert done.stdout == recipe.find("tiny/supervised").read_bytes()
    done = cli("recipes", "show", "tiny/supervised", "train.lr=0.25", "--resolved")
    assert done.returncode == 0
    got = recipe.loads(done.stdout.decode(), "tiny/supervised")
    assert got == recipe.load("tiny/supervised", ["train.lr=0.25"])
    done = cli("recipes", "show", "tiny/supervised", "train.lr=1")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--resolved" in done.stderr


def test_check_says_one_line_for_each_bad_recipe(cli: Runner, tmp_path: Path) -> None:
    good = recipe.find("tiny/supervised").read_text()
    (tmp_path / "good.yaml").write_text(good)
    (tmp_path / "bad.yaml").write_text(good.replace("lr: 1e-2", "lr: fast"))
    done = cli("recipes", "check", "good.yaml", "bad.yaml", "tiny/supervised", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    first, second, third = done.stderr.decode().splitlines()
    assert first == "good.yaml: ok"
    assert third == "tiny/supervised: ok"
    line = good[: good.index("lr: 1e-2")].count("\n") + 1
    assert second == (
        f"audiossl: error: recipe train.lr: expected a number, got 'fast' (bad.yaml, line {line})"
    )
    done = cli("recipes", "check", "-q", "good.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert cli("recipes", "check").returncode == 2


def test_copy_writes_once(cli: Runner, tmp_path: Path) -> None:
    content = recipe.find("tiny/supervised").read_bytes()
    done = cli("recipes", "copy", "tiny/supervised", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"supervised.yaml\n")
    assert (tmp_path / "supervised.yaml").read_bytes() == content
    (tmp_path / "supervised.yaml").write_text("changed")
    done = cli("recipes", "copy", "tiny/supervised", cwd=tmp_path)
    assert done.returncode == 6
    assert b"supervised.yaml exists: --on-exists overwrite" in done.stderr
    assert (tmp_path / "supervised.yaml").read_text() == "changed"
    done = cli("recipes", "copy", "tiny/supervised", "--on-exists", "overwrite", cwd=tmp_path)
    assert (tmp_path / "supervised.yaml").read_bytes() == content
    cli("recipes", "copy", "tiny/supervised", "mine.yaml", cwd=tmp_path)
    assert (tmp_path / "mine.yaml").read_bytes() == content
    assert cli("recipes", "copy", "tiny/supervised", "no/where.yaml", cwd=tmp_path).returncode == 6


@pytest.mark.parametrize("verb", ["show", "check", "copy"])
def test_unknown_names_are_answered_with_the_nearest(
    cli: Runner, verb: str, tmp_path: Path
) -> None:
    done = cli("recipes", verb, "tiny/superwised", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"no recipe 'tiny/superwised' (did you mean 'tiny/supervised'?)" in done.stderr
