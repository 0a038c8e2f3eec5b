"""Completion in bash of words that hold `=` or `:`, such as `--set student.model=cifar/resnet8`.

Bash splits a line at these characters too, and replaces what stands behind the last of them. click's own
script hands over these pieces, so that nothing behind `=` is completed, and it puts a blank behind a key.
"""

from __future__ import annotations

import os
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

_SCRIPT = """\
%(complete_func)s() {
    local IFS=$'\\n' response type value

    response=$(env COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_CWORD=$COMP_CWORD \\
        COMP_WORDBREAKS="$COMP_WORDBREAKS" %(complete_var)s=bash_complete $1)

    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"

        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("$value")
            [[ $value == *= ]] && compopt -o nospace
        fi
    done

    return 0
}

%(complete_func)s_setup() {
    complete -o nosort -o default -F %(complete_func)s %(prog_name)s
}

%(complete_func)s_setup;
"""


class WholeWords(BashComplete):
    """Completes whole words of the line, and returns what bash replaces of them."""

    source_template = _SCRIPT
    _kept = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Returns the words before the last one, and the last one, which is not complete."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        if not words or line[-1].isspace():
            words.append("")
        last = words[-1]
        breaks = {mark for mark in "=:" if mark in os.environ.get("COMP_WORDBREAKS", "")}
        ends = [at + 1 for at, mark in enumerate(last) if mark in breaks]
        self._kept = last[: max(ends, default=0)]
        return words[1:-1], last

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Returns the kind and the part of the value behind what bash keeps."""
        return f"{item.type},{str(item.value).removeprefix(self._kept)}"


def register() -> None:
    """Makes it what `_KDCOMPRESS_COMPLETE=bash_source` gives."""
    add_completion_class(WholeWords)
