# The guests reach what the host reaches, and are the host for whoever is there. Host and machine are network namespaces
# of the demo's own, with a pair of interfaces between them: the machine's interfaces stay as they are.
# shellcheck shell=bash disable=SC2034,SC2154

beyond4=10.7.0.2 beyond6=fd07::2

prepare_mode() {
    mode_options=(--leases "$work/leases")
    make_host
    make_machine
    on_host ip link add eth0 type veth peer name eth0 netns "$machine"
    give_addresses eth0 10.7.0.1 fd07::1
    on_machine give_addresses eth0 "$beyond4" "$beyond6"
}

find_addresses() {
    get_addresses
    say "a machine beyond the host: $beyond4 and $beyond6"
}

# From there to the guests nothing leads.
more_rows() {
    become=1 on_machine host_iperf3 -s >/dev/null 2>&1 &
    started+=("$!")
    sleep 0.5
    echo
    row "" "guest 1 to beyond" "guest 2 to beyond"
    both_ways "iperf3, IPv4" iperf_cell "$beyond4" "$beyond4"
    both_ways "iperf3 -R, IPv4" iperf_back_cell "$beyond4" "$beyond4"
    both_ways "iperf3, IPv6" iperf_cell "$beyond6" "$beyond6"
    both_ways "ping, gateway" ping_cell 10.0.2.1 10.0.2.1
}
