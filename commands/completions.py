"""`audiossl completions SHELL`: the script that lets a shell complete audiossl commands."""

import click

SHELLS = {"bash": "audiossl.bash", "zsh": "_audiossl", "fish": "audiossl.fish"}


def script(shell: str) -> str:
    """The completion script of `shell`, as click generates it."""
    from click.shell_completion import get_completion_class

    from .main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    return kind(cli, {}, "audiossl", "_AUDIOSSL_COMPLETE").source().strip() + "\n"


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
def command(shell: str) -> None:
    """Print the script that lets your shell complete audiossl commands.

    \b
    bash: audiossl completions bash > ~/.local/share/bash-completion/completions/audiossl
    zsh:  audiossl completions zsh > "${fpath[1]}/_audiossl"
    fish: audiossl completions fish > ~/.config/fish/completions/audiossl.fish
    """
    click.echo(script(shell), nl=False)
