# The guests are on a LAN that is there already, with a DHCP server. Host and LAN are network namespaces of the demo's own,
# with a pair of interfaces between them: the machine's interfaces stay as they are.
# shellcheck shell=bash disable=SC2034,SC2154

lan4=10.9.0.1 lan6=fd09::1 host4=10.9.0.2 host6=fd09::2

prepare_mode() {
    local pid
    mode_options=(--nic eth0)
    make_host
    "${in_space[@]}" unshare --net sleep infinity &
    pid=$!
    started+=("$pid")
    lan_space=("${in_space[@]}")
    # The words enter another process's namespaces.
    lan_space[2]=$pid
    for _ in {1..100}; do
        [[ $(readlink "/proc/$pid/ns/net") == "$(readlink /proc/self/ns/net)" ||
            $(readlink "/proc/$pid/ns/net") == "$(on_host readlink /proc/self/ns/net)" ]] || break
        sleep 0.05
    done
    on_host ip link add eth0 type veth peer name lan0 netns "$pid"
    give_addresses eth0 "$host4" "$host6"
    in_lan give_addresses lan0 "$lan4" "$lan6"
    become=1 in_lan host_program usr/sbin/dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file --user=root \
        --interface=lan0 --bind-interfaces --port=0 --dhcp-range=10.9.0.100,10.9.0.150,255.255.255.0,1h \
        --dhcp-range=fd09::,ra-only,64 --enable-ra --dhcp-authoritative --no-ping --log-facility=- \
        --dhcp-leasefile="$work/dnsmasq.leases" >>"$log" 2>&1 &
    started+=("$!")
}

# Does something as if the machine of the LAN were the host.
in_lan() {
    local in_space=("${lan_space[@]}")
    "$@"
}

give_addresses() {
    on_host ip link set "$1" up
    on_host ip addr add "$2/24" dev "$1"
    on_host ip addr add "$3/64" dev "$1" nodad
}

find_addresses() {
    get_addresses
    say "a machine of the LAN, which serves DHCP: $lan4 and $lan6; the host: $host4 and $host6"
}

more_rows() {
    in_lan rows_with "the LAN" "$lan4" "$lan6"
    rows_with "the host" "$host4" "$host6"
}
