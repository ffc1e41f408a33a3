# The host is on the network too. It is a network namespace of the demo's own: the machine's interfaces stay as they are.
# shellcheck shell=bash disable=SC2034,SC2154

host4=192.168.56.1

prepare_mode() {
    local user=()
    mode_options=(--leases "$work/leases")
    # Without root, the namespace is one of a user namespace, in which we are root.
    ((EUID == 0)) || user=(--user --map-root-user)
    unshare "${user[@]}" --net sleep infinity &
    local pid=$!
    started+=("$pid")
    ((EUID == 0)) || user=(--user --preserve-credentials)
    in_space=(nsenter --target "$pid" "${user[@]}" --net)
    for _ in {1..100}; do
        [[ $(readlink "/proc/$pid/ns/net") == "$(readlink /proc/self/ns/net)" ]] || break
        sleep 0.05
    done
    on_host ip link set lo up || die "no network namespace can be made here; try as root"
}

# The first address in what `ip -o addr` says.
first_address() { awk '{ sub("/.*", "", $4); print $4; exit }' <<<"$1"; }

# The guests' from DHCP and from router advertisements, the host's from its interface.
find_addresses() {
    local n list="/bin/ip -6 -o addr show dev eth0 scope global -tentative"
    for n in 1 2; do
        in_guest "$n" "dhcp-up" || die "guest $n gets no address: $answer"
        in_guest "$n" "/bin/ip -4 -o addr show dev eth0" || die "guest $n has no address: $answer"
        ip4[n]=$(first_address "$answer")
        in_guest "$n" "for i in \$(seq 50); do $list | grep . && exit 0; usleep 200000; done; exit 1" ||
            die "guest $n makes no IPv6 address"
        ip6[n]=$(first_address "$answer")
        say "guest $n: ${ip4[n]} by DHCP, ${ip6[n]} by its own choice in the host's prefix"
    done
    host6=$(first_address "$(on_host ip -6 -o addr show dev gw-host-only scope global)")
    say "the host: $host4 and $host6"
}

more_rows() {
    local n
    "${host_iperf3[@]}" -s >/dev/null 2>&1 &
    started+=("$!")
    sleep 0.5
    for n in 1 2; do
        echo
        row "" "guest $n to the host" "the host to guest $n"
        to_and_from_host "ping, IPv4" ping "$n" "$host4" "${ip4[n]}"
        to_and_from_host "ping, IPv6" ping "$n" "$host6" "${ip6[n]}"
        to_and_from_host "iperf3, TCP" iperf "$n" "$host4" "${ip4[n]}"
    done
}

to_and_from_host() {
    local name=$1 what=$2 n=$3 first
    "${what}_cell" "$n" "$4"
    first=$cell
    "host_${what}_cell" "$5"
    row "$name" "$first" "$cell"
}
