"""Tab completion of ``ftkit …`` and ``python -m ftkit …`` in bash: ``eval "$(python -m ftkit -sc install=bash)"``."""

from __future__ import annotations

import os

from ftkit.config.stages import STAGE_WORDS
from ftkit.config.words import ON_THE_COMMAND_LINE
from ftkit.errors import ConfigError, Problem

INSTALL = r"""
_ftkit_complete() {
    local helper=(ftkit) word=${COMP_LINE:0:COMP_POINT}
    if [ "${COMP_LINE#*-m ftkit}" != "$COMP_LINE" ]; then helper=("${COMP_WORDS[0]}" -m ftkit); fi
    if [ "${helper[0]}" != ftkit ] || [ "${COMP_LINE%% *}" = ftkit ]; then
        local line="ftkit ${COMP_LINE#*ftkit}"
        word=${word##* }
        local offers=$(COMP_LINE=$line COMP_POINT=${#line} "${helper[@]}" -sc query=bash 2>/dev/null)
        COMPREPLY=($(compgen -W "$offers" -- "$word"))
    fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _ftkit_complete ftkit python python3
"""


def complete(arguments: list[str]) -> bool:
    """Answer what Hydra's completion does not know; False leaves the question to Hydra.

    Raises:
        ConfigError: for another shell.
    """
    if "install=bash" in arguments:
        print(INSTALL)
        return True
    if shells := [a for a in arguments if a.startswith(("install=", "uninstall="))]:
        what = f"{shells[0]}: there is tab completion for bash alone"
        raise ConfigError([Problem("-sc", what, ON_THE_COMMAND_LINE, "-sc install=bash")])
    word = os.environ.get("COMP_LINE", "").rpartition(" ")[2]
    if "query=bash" in arguments and word.startswith("stage="):
        before, comma, _ = word.removeprefix("stage=").rpartition(",")
        print(" ".join(f"stage={before}{comma}{name}" for name in STAGE_WORDS))
        return True
    return False
