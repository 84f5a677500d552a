"""`python -m mcontriever VERB …` is the `mcontriever` command, for where no script folder is on the PATH."""

from .cli import entry

entry()
