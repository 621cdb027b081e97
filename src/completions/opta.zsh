#compdef opta
# zsh completion for opta
_opta_sessions() {
  local -a ids
  local id rest
  opta sessions list --limit 200 2>/dev/null | while read -r id rest; do
    ids+=("$id:$rest")
  done
  (( $#ids )) || return
  ids=('last:the session that was used last' $ids)
  # Also for an id that is typed without its beginning.
  _describe session ids -V sessions -M 'l:|=*'
}
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
