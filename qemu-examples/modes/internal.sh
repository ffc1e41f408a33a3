# The guests are among themselves, and have the addresses that their command lines give them.
# shellcheck shell=bash disable=SC2034

for n in 1 2; do
    ip4[n]=10.9.0.$n ip6[n]=fd09::$n
    append[n]="gw.ip=${ip4[n]}/24 gw.ip6=${ip6[n]}/64"
done
