# The host is on the network too. It is a network namespace of the demo's own: the machine's interfaces stay as they are.
# shellcheck shell=bash disable=SC2034,SC2154

host4=192.168.56.1

prepare_mode() {
    mode_options=(--leases "$work/leases")
    make_host
}

# The guests' from DHCP and from router advertisements, the host's from its interface.
find_addresses() {
    get_addresses
    host6=$(first_address "$(on_host ip -6 -o addr show dev gw-host-only scope global)")
    say "the host: $host4 and $host6"
}

more_rows() { rows_with "the host" "$host4" "$host6"; }
