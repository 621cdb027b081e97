#compdef opta
# zsh completion for opta
_opta() {
  local -a typed candidates
  local word
  for word in ${words[2,CURRENT-1]}; do
    [[ $word == -* ]] || typed+=($word)
  done
  case $words[CURRENT-1] in
@values@
  esac
  case "${typed[*]}" in
@commands@
  esac
}
# compinit loads this file as the body of the function; otherwise it is sourced.
if [[ $funcstack[1] == _opta ]]; then _opta "$@"; else compdef _opta opta; fi
