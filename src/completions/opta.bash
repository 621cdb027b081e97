# bash completion for opta
_opta_sessions() {
    local id rest found=''
    while read -r id rest; do
        found+=" $id"
    done < <(opta sessions list --limit 200 2>/dev/null)
    [[ -z $found ]] || echo "last$found"
}
_opta() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local typed='' i candidates=''
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -* ]] || typed+=" ${COMP_WORDS[i]}"
    done
    COMPREPLY=()
    case $previous in
@values@
        *)
            case "${typed# }" in
@commands@
            esac
            ;;
    esac
    # The second time for an id that is typed without its beginning.
    while IFS= read -r i; do
        COMPREPLY+=("$i")
    done < <(compgen -W "$candidates" -- "$word" || compgen -W "$candidates" -- "sess_$word")
    [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace 2>/dev/null
}
complete -F _opta opta
