# Words on the way, for the scripts that source this. They set `label`, the word each line begins with, and `log`, the file
# that the output of commands goes to.
# shellcheck shell=bash disable=SC2154

say() { printf '%s: %s\n' "$label" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Runs a command with its output in the log, telling how long it has been at it: on a terminal every second in one line,
# elsewhere after two seconds and then every ten.
progress() {
    local what=$1 start=$SECONDS next=$((SECONDS + 2)) pid
    shift
    "$@" >>"$log" 2>&1 </dev/null 9>&- &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.1
        ((SECONDS >= next)) || continue
        if [[ -t 2 ]]; then
            printf '\r%s: %s ... %s s' "$label" "$what" "$((SECONDS - start))" >&2
            next=$((SECONDS + 1))
        else
            say "$what ... $((SECONDS - start)) s"
            next=$((SECONDS + 10))
        fi
    done
    [[ ! -t 2 ]] || printf '\r' >&2
    wait "$pid" || { tail -n 15 "$log" >&2; die "$what failed; the whole log is $log"; }
    say "$what: done after $((SECONDS - start)) s"
}
