"""`nnicompress completion`: the bash script, and the candidates that the script asks for."""

from __future__ import annotations

import os

from nnicompress.errors import UserError

HELP = """
usage: nnicompress completion bash

Prints a script that completes commands, recipes, groups, options and keys. To load it in this shell:

  eval "$(nnicompress completion bash)"
"""

# Candidates are for the whole word; bash splits words at '=' unless told otherwise, so what lies before the last
# one is cut off again where '=' is a word break.
BASH = """\
_nnicompress_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" word candidate
    word="${line##*[[:space:]]}"
    COMPREPLY=()
    while IFS= read -r candidate; do
        [[ "$candidate" == "$word"* ]] || continue
        if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then
            candidate="${candidate#"${word%=*}="}"
        fi
        COMPREPLY+=("$candidate")
    done < <(COMP_LINE="$line" "${COMP_WORDS[0]}" completion query 2>/dev/null)
}
complete -o nospace -o default -F _nnicompress_completion nnicompress
"""


def main(arguments: list[str]) -> int:
    """Print the script (`bash`), or the candidates for the command line in COMP_LINE (`query`, for the script)."""
    if arguments == ["bash"]:
        print(BASH, end="")
        return 0
    if arguments == ["query"]:
        from nnicompress.commands.candidates import candidates

        print("\n".join(candidates(os.environ.get("COMP_LINE", ""))))
        return 0
    raise UserError("completion takes one word: nnicompress completion bash")
