"""Run scripts: parse command lines and YAML or JSON files of flags, report errors, format tables."""

import difflib
import os
import re
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging

# Keys of a field's metadata that are the package's own.
FACTS = {"role", "at_least", "at_most", "above", "below"}


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Names defaults, keeps the lines of a description, and says of `--no_*` flags that they turn something off."""

    def _get_help_string(self, action: Action) -> str | None:
        # HfArgumentParser gives these the help and the default of the flag that they turn off.
        if action.nargs == 0 and action.const is False:
            return f"The same as --{action.dest} False."
        if action.default is None:  # which the text has to tell
            return action.help
        return super()._get_help_string(action)


class ScriptArgumentParser(HfArgumentParser):
    """A parser that takes no abbreviated flag, and ends the program with status 2 and a line that names what is wrong.

    The fields of `dataclasses` are flags; `options` are those of `argparse.ArgumentParser`.
    """

    def __init__(self, dataclasses: type | tuple[type, ...] = (), **options: Any):
        super().__init__(dataclasses, allow_abbrev=False, formatter_class=HelpFormatter, **options)

    def add_argument(self, *names: str, **options: Any) -> Action:
        # HfArgumentParser passes on all metadata of a field.
        return super().add_argument(*names, **{name: value for name, value in options.items() if name not in FACTS})

    def error(self, message: str) -> NoReturn:
        # Without the usage, which is longer than a screen.
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(self, args: list[str] | None = None, namespace: Namespace | None = None):
        # Shells leave the `~` behind a `=`, and a file of flags never meets one.
        home = os.path.expanduser("~")
        args = [
            re.sub(r"^(--\w+=)?~(?=[/\\]|$)", lambda found: (found[1] or "") + home, word)
            for word in (sys.argv[1:] if args is None else args)
        ]
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.error(f"unknown argument {unknown[0]}{hint}; --help lists all.")
        return namespace, unknown

    def parse(self) -> tuple:
        """Instances of the dataclasses from the command line, or from a YAML or JSON file and the flags after it.

        `train.py run.yaml --seed 1` reads run.yaml as if its keys were flags, and lets later flags win. Last comes
        the namespace of the arguments that were added one by one, if there are any.
        """
        words = sys.argv[1:]
        try:
            if words and words[0].endswith((".yaml", ".yml", ".json")):
                words = flags_of_file(words[0]) + words[1:]
            return self.parse_args_into_dataclasses(words, look_for_args_file=False)
        except ValueError as error:
            self.error(str(error))


def run_script(main: Callable[[], None], *errors: type[Exception]) -> None:
    """Runs a script; an error that is no bug, or one of `errors`, ends it with status 1 and one line."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's kernel, with `%run`, lacks it and needs neither
        # Figures are files, and the backend of a notebook may be missing in the environment of its `!python`.
        os.environ["MPLBACKEND"] = "Agg"
        sys.stdout.reconfigure(errors="replace")  # as stderr, it ends no run where it is not UTF-8
    if not shows_progress():
        logging.disable_progress_bar()  # of transformers and huggingface_hub
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when `datasets` is imported
    try:
        main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "hf_vqvae":
            raise
        extras = "[train,plot,demo,onnx,keras]"
        sys.exit(f"Error: {error}: pip install 'hf_vqvae{extras}', or in a checkout pip install -e '.{extras}'.")
    except (ValueError, OSError, FloatingPointError, *errors) as error:
        # Names in models and datasets and answers of servers may hold escape sequences.
        text = "".join(one if one.isprintable() or one == "\n" else " " for one in str(error))
        sys.exit(f"Error: {text}")


def is_first_process() -> bool:
    """Returns whether this is the main process; needs no `Accelerator`."""
    return os.environ.get("RANK", "0") == "0"


def shows_progress() -> bool:
    """Returns whether this process shows progress bars: the main process, on a terminal, without TQDM_DISABLE."""
    return is_first_process() and sys.stderr.isatty() and not os.environ.get("TQDM_DISABLE")


def progress_bar(*arguments: Any, **options: Any) -> tqdm:
    """Makes a `tqdm` bar, which is shown where [`shows_progress`] says so; `arguments` and `options` are its own."""
    return tqdm(*arguments, disable=not shows_progress(), dynamic_ncols=True, **options)


def log_line(title: str, figures: dict[str, float], end: str) -> None:
    """Prints figures as one line on stderr, on the main process where it shows no progress bars."""
    if is_first_process() and not shows_progress():
        named = [f"{name} {value:.5g}" for name, value in figures.items()]
        print(", ".join([title, *named, end]), file=sys.stderr, flush=True)


def flags_of_file(path: str) -> list[str]:
    """The command line that a YAML or JSON file stands for; `ValueError` if it is no mapping from flags to values."""
    try:
        # JSON is YAML, but YAML 1.1 reads 2e-3 as a word; the parser makes it the number it is.
        values = yaml.safe_load(Path(path).read_bytes())  # UTF-8, whatever the locale
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot read the arguments in {path}: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must map flags to values, such as `seed: 1`.")
    words = []
    for name, value in values.items():
        if value is None or value == []:
            continue
        # With `=`, a value may begin with a dash.
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return words


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """Format a Markdown table of texts; `align` has `<` (left) or `>` (right) for each column."""
    rule = ["---:" if side == ">" else "---" for side in align]
    lines = [header, rule, *rows]
    columns = zip(align, zip(*lines, strict=True), strict=True)
    formats = [f"{side}{max(map(len, cells))}" for side, cells in columns]
    return "\n".join(f"| {' | '.join(map(format, line, formats))} |" for line in lines)
