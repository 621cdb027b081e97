# bash completion for opta
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
    while IFS= read -r i; do
        COMPREPLY+=("$i")
    done < <(compgen -W "$candidates" -- "$word")
    [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace 2>/dev/null
}
complete -F _opta opta
