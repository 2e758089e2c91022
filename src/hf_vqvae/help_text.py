"""What `--help` of the scripts looks like."""

from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Names defaults, keeps the lines of a description, and says of `--no_*` flags that they turn something off."""

    def _get_help_string(self, action: Action) -> str | None:
        # HfArgumentParser gives these the help and the default of the flag that they turn off.
        if action.nargs == 0 and action.const is False:
            return f"The same as --{action.dest} False."
        if action.default is None:  # which the text has to tell
            return action.help
        return super()._get_help_string(action)
