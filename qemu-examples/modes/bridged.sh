# The guests are on a LAN that is there already, with a DHCP server. Host and LAN are network namespaces of the demo's own,
# with a pair of interfaces between them: the machine's interfaces stay as they are.
# shellcheck shell=bash disable=SC2034,SC2154

lan4=10.9.0.1 lan6=fd09::1 host4=10.9.0.2 host6=fd09::2

prepare_mode() {
    mode_options=(--nic eth0)
    make_host
    make_machine
    on_host ip link add eth0 type veth peer name lan0 netns "$machine"
    give_addresses eth0 "$host4" "$host6"
    on_machine give_addresses lan0 "$lan4" "$lan6"
    become=1 on_machine host_program usr/sbin/dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file --user=root \
        --interface=lan0 --bind-interfaces --port=0 --dhcp-range=10.9.0.100,10.9.0.150,255.255.255.0,1h \
        --dhcp-range=fd09::,ra-only,64 --enable-ra --dhcp-authoritative --no-ping --log-facility=- \
        --dhcp-leasefile="$work/dnsmasq.leases" >>"$log" 2>&1 &
    started+=("$!")
}

find_addresses() {
    get_addresses
    say "a machine of the LAN, which serves DHCP: $lan4 and $lan6; the host: $host4 and $host6"
}

more_rows() {
    on_machine rows_with "the LAN" "$lan4" "$lan6"
    rows_with "the host" "$host4" "$host6"
}
