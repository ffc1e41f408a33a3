#!/usr/bin/env bash
# Two real QEMU guests on one guestwire network: installs what is missing, builds, boots, measures, prints a table.
#
#   qemu-examples/demo.sh [--yes] [--mode internal|host-only|bridged|nat]
#
# Without --mode it shows all modes one after the other. Each is a file in qemu-examples/modes. --yes installs missing packages without asking. Exit code 0 means that everything in the table worked. Nothing is left running.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tests/lab/say.sh
. "$root/tests/lab/say.sh"
label=demo
boot_seconds=60
iperf_seconds=3
known_modes=$(cd "$root/qemu-examples/modes" && echo *.sh | sed 's/\.sh//g')

usage() {
    echo "usage: qemu-examples/demo.sh [--yes] [--mode MODE]; the modes: $known_modes" >&2
    exit 2
}

# --- the options ------------------------------------------------------------------------------------------------------

prepare_options=() mode=all
while (($#)); do
    case $1 in
        --yes) prepare_options=(--yes) ;;
        --mode)
            (($# > 1)) || usage
            mode=$2
            shift
            ;;
        --mode=*) mode=${1#*=} ;;
        *) usage ;;
    esac
    shift
done
if [[ $mode == all ]]; then
    table=$(mktemp) code=0
    trap 'rm -f "$table"' EXIT
    for mode in internal host-only bridged nat; do
        "${BASH_SOURCE[0]}" "${prepare_options[@]}" --mode "$mode" >>"$table" || code=$?
        ((code < 2)) || break
    done
    cat "$table"
    exit "$code"
fi
[[ $mode != */* && -f $root/qemu-examples/modes/$mode.sh ]] || {
    say "--mode $mode: the demo has no such mode; it has $known_modes"
    exit 2
}

# A mode's file may set these, and defines what it does differently.
#   mode_options          further options of guestwire's
#   append[N]             words for guest N's kernel
#   ip4[N], ip6[N]        guest N's addresses
#   in_space              words before a command that is to run where guestwire does
#   prepare_mode          makes what guestwire finds when it starts
#   find_addresses        sets ip4 and ip6 once the guests are up
#   more_rows             prints further rows of the table
in_space=() mode_options=() append=() ip4=() ip6=()
prepare_mode() { :; }
find_addresses() { :; }
more_rows() { :; }
# shellcheck source=/dev/null
. "$root/qemu-examples/modes/$mode.sh"

# --- nothing is left running ------------------------------------------------------------------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/guestwire-demo-XXXXXX")
log="$work/log"
: >"$log"
started=() failed=0

clean_up() {
    local code=$? pid
    trap - EXIT
    for pid in "${started[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in "${started[@]}"; do
        # A process that has not gone after two seconds is killed.
        for _ in {1..20}; do kill -0 "$pid" 2>/dev/null && sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if ((code)); then
        for file in "$work"/*.console "$work/guestwire.log"; do
            [[ -s $file ]] && { echo "--- the end of ${file##*/}:"; tail -n 12 "$file"; } >&2
        done
    fi
    rm -rf "$work"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --- guests -----------------------------------------------------------------------------------------------------------

# The command line as it stands in the examples, the one for this machine's QEMU.
choose_command() {
    local version major minor
    version=$(qemu-system-x86_64 --version | sed -n 's/^QEMU emulator version \([0-9]*\.[0-9]*\).*/\1/p')
    major=${version%%.*} minor=${version#*.}
    [[ $version ]] || die "qemu-system-x86_64 does not tell its version"
    command_file="$root/qemu-examples/$mode/qemu-1-queue.cmd" extra=""
    if ((major < 9 || (major == 9 && minor < 2))); then
        command_file="$root/qemu-examples/$mode/qemu-before-9.2-1-queue.cmd"
    fi
    # QEMU 7.2 crashes on a vhost-user NIC with MSI-X vectors under TCG.
    if [[ $ACCEL == *tcg* ]] && ((major < 10)); then
        extra="-set device.nic0.vectors=0"
    fi
}

start_guest() {
    local n=$1 fd
    : >"$work/guest-$n.console"
    mkfifo "$work/$n.in"
    exec {fd}<>"$work/$n.in"
    inputs[n]=$fd
    # An emulated timer that is late when the kernel tests it would be given up for good.
    MAC="52:54:00:67:77:0$n" APPEND="no_timer_check ${append[n]:-}" \
        sh -c "exec $(tr '\n' ' ' <"$command_file") $extra" <"$work/$n.in" >"$work/guest-$n.console" 2>&1 &
    started+=($!)
    guests[n]=$!
}

wait_for_guest() {
    local n=$1 begin=$SECONDS shown=$SECONDS tenths
    until grep -q 'GUEST READY' "$work/guest-$n.console"; do
        kill -0 "${guests[n]}" 2>/dev/null || die "guest $n: QEMU ended"
        ((SECONDS - begin < boot_seconds)) || die "guest $n did not boot within $boot_seconds s"
        if ((SECONDS - shown >= 2)); then
            shown=$SECONDS
            say "guest $n boots ... $((SECONDS - begin)) s"
        fi
        sleep 0.1
    done
    tenths=$(((${EPOCHREALTIME/[.,]/} - boot_began) / 100000))
    say "guest $n: up after $((tenths / 10)).$((tenths % 10)) s"
}

# `in_guest N COMMAND`: the command's output in `answer`; fails when the command does, or does not end in time.
last_id=0
in_guest() {
    local n=$1 command=$2 console="$work/guest-$1.console" from deadline=$((SECONDS + 30)) code
    last_id=$((last_id + 1))
    from=$(($(stat -c %s "$console") + 1))
    printf 'RUN %s %s\n' "$last_id" "$command" >&"${inputs[n]}"
    until code=$(tail -c "+$from" "$console" | tr -d '\r' | sed -n "s/^DONE $last_id \([0-9]*\)\$/\1/p") && [[ $code ]]; do
        kill -0 "${guests[n]}" 2>/dev/null || die "guest $n: QEMU ended"
        ((SECONDS < deadline)) || die "guest $n did not answer: $command"
        sleep 0.05
    done
    answer=$(tail -c "+$from" "$console" | tr -d '\r' | sed "/^DONE $last_id /,\$d")
    return "$code"
}

# What the host runs, from where guestwire is.
# With `become` set it takes the place of the shell that it is called in: a job of the background is then what is ended.
on_host() { ${become:+exec} "${in_space[@]}" "$@"; }

# A program that was prepared with the guests', with the libraries that it was made for.
host_program() {
    local tree=$GUEST_TREE libs="lib/x86_64-linux-gnu"
    [[ -d $tree/$libs ]] || libs="usr/$libs"
    on_host "$tree/$libs/ld-linux-x86-64.so.2" --library-path "$tree/$libs:$tree/usr/lib/x86_64-linux-gnu" "$tree/$1" "${@:2}"
}

host_iperf3() { host_program usr/bin/iperf3 "$@"; }

host_ping() { on_host "$GUEST_TREE/bin/busybox" ping "$@"; }

# A namespace for the host, in `in_space`: the machine's interfaces stay as they are. Without root, it is one of a user
# namespace, in which we are root.
make_host() {
    local user=() pid
    ((EUID == 0)) || user=(--user --map-root-user)
    unshare "${user[@]}" --net sleep infinity &
    pid=$!
    started+=("$pid")
    ((EUID == 0)) || user=(--user --preserve-credentials)
    in_space=(nsenter --target "$pid" "${user[@]}" --net)
    for _ in {1..100}; do
        [[ $(readlink "/proc/$pid/ns/net") == "$(readlink /proc/self/ns/net)" ]] || break
        sleep 0.05
    done
    on_host ip link set lo up || die "no network namespace can be made here; try as root"
}

# Another machine, beside the host: a namespace of the host's, in `machine_space`, of the process `machine`.
make_machine() {
    "${in_space[@]}" unshare --net sleep infinity &
    machine=$!
    started+=("$machine")
    machine_space=("${in_space[@]}")
    # The words enter another process's namespaces.
    machine_space[2]=$machine
    for _ in {1..100}; do
        [[ $(readlink "/proc/$machine/ns/net") == "$(readlink /proc/self/ns/net)" ||
            $(readlink "/proc/$machine/ns/net") == "$(on_host readlink /proc/self/ns/net)" ]] || break
        sleep 0.05
    done
}

# Does something as if that machine were the host.
on_machine() {
    local in_space=("${machine_space[@]}")
    "$@"
}

give_addresses() {
    on_host ip link set "$1" up
    on_host ip addr add "$2/24" dev "$1"
    on_host ip addr add "$3/64" dev "$1" nodad
}

# The first address in what `ip -o addr` says.
first_address() { awk '{ sub("/.*", "", $4); print $4; exit }' <<<"$1"; }

# Has the guests get addresses from DHCP and from router advertisements.
get_addresses() {
    local n list="/bin/ip -6 -o addr show dev eth0 scope global -tentative"
    for n in 1 2; do
        in_guest "$n" "dhcp-up" || die "guest $n gets no address: $answer"
        in_guest "$n" "/bin/ip -4 -o addr show dev eth0" || die "guest $n has no address: $answer"
        ip4[n]=$(first_address "$answer")
        in_guest "$n" "for i in \$(seq 50); do $list | grep . && exit 0; usleep 200000; done; exit 1" ||
            die "guest $n makes no IPv6 address"
        ip6[n]=$(first_address "$answer")
        say "guest $n: ${ip4[n]} by DHCP, ${ip6[n]} by its own choice in the prefix that it was told"
    done
}

# --- measuring --------------------------------------------------------------------------------------------------------

# Each of these leaves one cell of the table in `cell`, and counts what did not work.
read_ping() {
    local loss rtt
    loss=$(sed -n 's/.* \([0-9]*\)% packet loss.*/\1/p' <<<"$1")
    rtt=$(sed -n 's|.*min/avg/max = [^/]*/\([^/]*\)/.*|\1|p' <<<"$1")
    cell="${loss:-100}% loss${rtt:+, $rtt ms}"
    [[ $loss == 0 ]] || failed=$((failed + 1))
}

read_iperf() {
    local rate
    rate=$(awk '/receiver$/ { for (i = 2; i <= NF; i++) if ($i == "Mbits/sec") print $(i - 1) }' <<<"$1" | tail -n 1)
    cell="${rate:-0} Mbit/s"
    awk -v rate="${rate:-0}" 'BEGIN { exit !(rate > 0) }' || failed=$((failed + 1))
}

ping_cell() {
    in_guest "$1" "ping -c 5 -i 0.2 -W 3 $2" || true
    read_ping "$answer"
}

iperf_cell() {
    in_guest "$1" "iperf3 -c $2 -t $iperf_seconds -i 0 -f m" || true
    read_iperf "$answer"
}

iperf_back_cell() {
    in_guest "$1" "iperf3 -c $2 -R -t $iperf_seconds -i 0 -f m" || true
    read_iperf "$answer"
}

host_ping_cell() { read_ping "$(host_ping -c 5 -i 0.2 -W 3 "$1" 2>&1 || true)"; }

host_iperf_cell() { read_iperf "$(host_iperf3 -c "$1" -t "$iperf_seconds" -i 0 -f m 2>&1 || true)"; }

# The feature bits by their names in the specification (virtio 1.3, sections 5.1.3 and 6).
features=(0:CSUM 1:GUEST_CSUM 3:MTU 5:MAC 7:GUEST_TSO4 8:GUEST_TSO6 9:GUEST_ECN 11:HOST_TSO4 12:HOST_TSO6 13:HOST_ECN
    15:MRG_RXBUF 16:STATUS 17:CTRL_VQ 22:MQ 28:INDIRECT_DESC 29:EVENT_IDX 32:VERSION_1 35:IN_ORDER 54:GUEST_USO4
    55:GUEST_USO6 56:HOST_USO)

row() {
    printf '  %s%-16s%s %-24s %s\n' "$bold" "$1" "$plain" "$2" "$3"
}

both_ways() {
    local name=$1 measure=$2 first
    "$measure" 1 "$3"
    first=$cell
    "$measure" 2 "$4"
    row "$name" "$first" "$cell"
}

# `rows_with NAME IP4 IP6`: what each guest and the machine that `in_space` enters are to each other.
rows_with() {
    local n
    become=1 host_iperf3 -s >/dev/null 2>&1 &
    started+=("$!")
    sleep 0.5
    for n in 1 2; do
        echo
        row "" "guest $n to $1" "$1 to guest $n"
        to_and_from "ping, IPv4" ping "$n" "$2" "${ip4[n]}"
        to_and_from "ping, IPv6" ping "$n" "$3" "${ip6[n]}"
        to_and_from "iperf3, TCP" iperf "$n" "$2" "${ip4[n]}"
    done
}

to_and_from() {
    local name=$1 what=$2 first
    "${what}_cell" "$3" "$4"
    first=$cell
    "host_${what}_cell" "$5"
    row "$name" "$first" "$cell"
}

print_negotiated() {
    local feature bits=() one other
    for n in 1 2; do
        in_guest "$n" "cat /sys/class/net/eth0/device/features" || die "guest $n has no network device"
        bits[n]=$answer
    done
    # Without VERSION_1 the driver does not know this device.
    [[ ${bits[1]:32:1}${bits[2]:32:1} == 11 ]] || failed=$((failed + 1))
    for feature in "${features[@]}"; do
        one=${bits[1]:${feature%%:*}:1} other=${bits[2]:${feature%%:*}:1}
        one=${one/1/yes} other=${other/1/yes}
        row "${feature#*:}" "${one/0/-}" "${other/0/-}"
    done
}

# --- in order ---------------------------------------------------------------------------------------------------------

bold="" plain=""
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' plain=$'\e[0m'
fi

command -v cargo >/dev/null || die "cargo is missing; install Rust first"
"$root/tests/lab/prepare.sh" "${prepare_options[@]}" demo
# shellcheck source=/dev/null
. "${GUESTWIRE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/guestwire}/demo.env"
export KERNEL INITRD ACCEL SOCKET="$work/net.sock"
choose_command
progress "building guestwire" cargo build --release --locked --manifest-path "$root/Cargo.toml"
target=$(cargo metadata --format-version 1 --no-deps --manifest-path "$root/Cargo.toml" | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

prepare_mode
become=1 on_host "$target/release/guestwire" "$mode" --socket-path "$SOCKET" "${mode_options[@]}" </dev/null >"$work/guestwire.log" 2>&1 &
daemon=$!
started+=("$daemon")
for _ in {1..100}; do
    [[ -S $SOCKET ]] && break
    kill -0 "$daemon" 2>/dev/null || die "guestwire ended"
    sleep 0.05
done
[[ -S $SOCKET ]] || die "guestwire made no socket"
say "guestwire $mode --socket-path $SOCKET ${mode_options[*]}"

inputs=() guests=()
boot_began=${EPOCHREALTIME/[.,]/}
for n in 1 2; do start_guest "$n"; done
for n in 1 2; do wait_for_guest "$n"; done
find_addresses
for n in 1 2; do in_guest "$n" "iperf3 -s -D && sleep 1" || die "guest $n: iperf3 does not start: $answer"; done

qemu=$(qemu-system-x86_64 --version | sed -n 's/^QEMU emulator version \([0-9.]*\).*/QEMU \1/p')
accel=${ACCEL#-accel }
in_guest 1 "uname -r"
printf '\n%sTwo guests on one %s network%s (%s, %s, Linux %s)\n\n' "$bold" "$mode" "$plain" "$qemu" "${accel%%[ ,]*}" "$answer"
row "" "guest 1 to guest 2" "guest 2 to guest 1"
both_ways "ping, IPv4" ping_cell "${ip4[2]}" "${ip4[1]}"
both_ways "ping, IPv6" ping_cell "${ip6[2]}" "${ip6[1]}"
both_ways "iperf3, TCP" iperf_cell "${ip4[2]}" "${ip4[1]}"
more_rows
echo
row "negotiated" "guest 1" "guest 2"
print_negotiated
echo
if ((failed)); then
    die "$failed of these did not work"
fi
say "all of it worked"
