# fish completion for opta
function __opta_at
    set -l typed
    for word in (commandline -opc)[2..]
        string match -q -- '-*' $word; or set -a typed $word
    end
    test "$typed" = "$argv"
end
function __opta_in
    set -l typed
    for word in (commandline -opc)[2..]
        string match -q -- '-*' $word; or set -a typed $word
    end
    string match -q -- "$argv *" "$typed "
end
function __opta_sessions
    set -l ids (opta sessions list --limit 200 2>/dev/null | string replace -r ' +' '\t')
    set -q ids[1]; and printf '%s\n' "last"\t'the session that was used last' $ids
end
complete -c opta -f
complete -c opta -s h -l help -d 'show help'
@commands@
