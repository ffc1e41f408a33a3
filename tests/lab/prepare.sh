#!/usr/bin/env bash
# Makes the machines that the demo and the real-guest tests boot, in a cache folder, and says in lab.env where they are.
#
#   tests/lab/prepare.sh [--yes] demo     a guest kernel, its initramfs, this machine's QEMU
#   tests/lab/prepare.sh [--yes] tests    the same, Debian 12's QEMU and User Mode Linux, and sid's, and programs of a LAN
#   tests/lab/prepare.sh [--yes] bench    the same, Debian 12's DPDK and Open vSwitch with DPDK, and sid's passt
#
# The only thing it may install on this machine is what `install_missing` names, after asking. Everything else is fetched
# by an apt of its own (own lists, own empty status file; the machine's /etc/apt is read, never written), unpacked with
# `dpkg -x` and run from the cache. A part is made again only when the packages it is made of have changed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${GUESTWIRE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/guestwire}
lists_max_age_minutes=1440
probe_seconds=10
base_suite=bookworm
new_suite=sid

# shellcheck source=tests/lab/say.sh
. "$here/say.sh"
label=lab
log="$cache/log"

# --- what this machine itself must have -------------------------------------------------------------------------------

install_missing() {
    local want=() as_root=()
    command -v cc >/dev/null || want+=(gcc libc6-dev)
    if [[ $goal == demo ]]; then
        command -v qemu-system-x86_64 >/dev/null || want+=(qemu-system-x86 ipxe-qemu)
    else
        # The fuzzer's runtime is C++.
        command -v c++ >/dev/null || want+=(g++)
        # Makes network namespaces and what is in them.
        command -v ip >/dev/null || want+=(iproute2)
        # Has system calls fail.
        command -v strace >/dev/null || want+=(strace)
        # Counts instructions.
        command -v valgrind >/dev/null || want+=(valgrind)
    fi
    ((${#want[@]})) || return 0
    if ((EUID)); then
        command -v sudo >/dev/null || die "please install ${want[*]} (no sudo here to do it with)"
        as_root=(sudo)
    fi
    if ! ((yes)); then
        [[ -t 0 ]] || die "${want[*]} must be installed; run this with --yes, or install them first"
        read -r -p "lab: install ${want[*]} with apt-get? [Y/n] " answer
        [[ ${answer:-y} == [Yy]* ]] || die "not without ${want[*]}"
    fi
    ((EUID == 0)) || sudo -v
    if ! apt-get --simulate --quiet=2 install "${want[@]}" >/dev/null 2>&1; then
        progress "reading package lists" "${as_root[@]}" apt-get update
    fi
    progress "installing ${want[*]}" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${want[@]}"
}

# --- packages, by an apt of our own -----------------------------------------------------------------------------------

# The Debian mirror: the caller's, this machine's own, or the one mmdebstrap knows (on Ubuntu).
find_mirror() {
    mirror=${GUESTWIRE_DEBIAN_MIRROR:-}
    # shellcheck disable=SC2016 # apt's own words, not the shell's
    [[ $mirror ]] || mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^Debian //p' | head -n 1)
    [[ $mirror ]] || mirror=$(unpack_from_machine mmdebstrap && grep -ohm1 "http://[^'\"> ]*/debian\b" "$cache/own/usr/bin/mmdebstrap")
    [[ $mirror ]] || die "no Debian mirror known; set GUESTWIRE_DEBIAN_MIRROR to one"
}

find_keyring() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ -r $keyring ]] && return
    keyring="$cache/own$keyring"
    [[ -r $keyring ]] || unpack_from_machine debian-archive-keyring
}

# Unpacks one package of this machine's own distribution into the cache.
unpack_from_machine() {
    local dir="$cache/own"
    mkdir -p "$dir"
    (cd "$dir" && apt-get download "$1" >>"$cache/log" 2>&1 && dpkg -x "$1"_*.deb . && rm -f "$1"_*.deb) ||
        die "cannot download $1; does 'apt-get update' work here?"
}

# `lab_apt SUITE apt-get ...`: apt with a world of its own, in which nothing is installed.
lab_apt() {
    local root="$cache/apt/$1"
    shift
    APT_CONFIG="$root/apt.conf" "$@"
}

set_up_apt() {
    local suite=$1 root="$cache/apt/$1"
    mkdir -p "$root"/{lists/partial,archives/partial,none}
    : >"$root/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" >"$root/sources.list"
    {
        apt-config dump --no-empty | grep '^Acquire::\(http\|https\|ftp\)::' || true
        cat <<CONF
Dir::Etc::main "/dev/null";
Dir::Etc::parts "$root/none";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$root/none";
Dir::Etc::sourcelist "$root/sources.list";
Dir::Etc::sourceparts "$root/none";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "$root/none";
Dir::State "$root";
Dir::State::lists "$root/lists";
Dir::State::status "$root/status";
Dir::Cache "$root";
Dir::Cache::archives "$root/archives";
Dir::Log "$root";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
CONF
    } >"$root/apt.conf"
    if [[ -z $(find "$root/updated" -mmin "-$lists_max_age_minutes" 2>/dev/null) ]]; then
        progress "reading Debian $suite's package lists" lab_apt "$suite" apt-get update
        touch "$root/updated"
    fi
}

# The addresses, names, sizes and hashes of packages with all they depend on.
closure_of() {
    local suite=$1 answer
    answer="$cache/apt/$1/closure-$(tr ' ' + <<<"${*:2}")"
    shift
    if [[ ! $answer -nt $cache/apt/$suite/updated ]]; then
        lab_apt "$suite" apt-get install --print-uris --quiet=2 "$@" >"$answer.new" 2>>"$cache/log" ||
            die "Debian $suite cannot install $* at the moment; see $cache/log"
        mv "$answer.new" "$answer"
    fi
    cat "$answer"
}

# The same for the cloud kernel that Debian names today, alone: installing one would touch the machine's boot loader.
kernel_of() {
    local suite=$1 answer="$cache/apt/$1/kernel" name
    if [[ ! $answer -nt $cache/apt/$suite/updated ]]; then
        name=$(lab_apt "$suite" apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
        [[ $name ]] || die "Debian $suite has no linux-image-cloud-amd64"
        lab_apt "$suite" apt-get download --print-uris "$name" >"$answer.new" 2>>"$cache/log" || die "Debian $suite lacks $name"
        mv "$answer.new" "$answer"
    fi
    cat "$answer"
}

# `make_tree NAME SUITE` unpacks the packages named on standard input into the cache's folder NAME, unless it is made of them.
make_tree() {
    local name=$1 suite=$2 dir="$cache/$1" wanted
    wanted=$(sort)
    if [[ -f $dir.made && $(<"$dir.made") == "$wanted" ]]; then
        return
    fi
    rm -rf "$dir" "$dir.made"
    progress "fetching and unpacking $name ($(wc -l <<<"$wanted") packages)" fetch_and_unpack "$dir" "$suite" "$wanted"
    printf '%s\n' "$wanted" >"$dir.made"
}

fetch_and_unpack() {
    local dir=$1 suite=$2 wanted=$3 packages file
    mkdir -p "$dir.debs" "$dir"
    mapfile -t packages < <(awk '{ print $2 }' <<<"$wanted" | sed -E 's/^([^_]+)_([^_]+)_.*/\1=\2/; s/%3a/:/g')
    (cd "$dir.debs" && lab_apt "$suite" apt-get download "${packages[@]}")
    for file in "$dir.debs"/*.deb; do
        dpkg -x "$file" "$dir"
    done
    rm -rf "$dir.debs" "$dir"/usr/share/{doc,man,locale,info}
}

# --- the guest --------------------------------------------------------------------------------------------------------

kernel_modules=(virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net)
# Of no use to most tests, and loaded by those that want them: `insmod` each of /modules/vlan/*.ko.
vlan_modules=(vlan/llc vlan/stp vlan/garp vlan/mrp vlan/8021q)
base_uml_modules=(crc-ccitt ipv6 failover net_failover virtio_net "${vlan_modules[@]}")
new_uml_modules=(failover net_failover virtio_net "${vlan_modules[@]}")
# What a machine that routes delays, loses and reorders packets with: `insmod` it, and have `tc` use it.
router_modules=(router/sch_netem)

make_trees() {
    { closure_of "$base_suite" busybox-static dnsmasq-base iperf3 iproute2 ethtool libgcc-s1 && kernel_of "$base_suite"; } |
        make_tree guest "$base_suite"
    if [[ $goal != demo ]]; then
        closure_of "$base_suite" qemu-system-x86 ipxe-qemu user-mode-linux | make_tree "$base_suite" "$base_suite"
        closure_of "$new_suite" qemu-system-x86 ipxe-qemu user-mode-linux | make_tree "$new_suite" "$new_suite"
        closure_of "$base_suite" busybox-static dnsmasq-base isc-dhcp-client dhcpcd-base iperf3 iputils-ping tcpdump nftables libgcc-s1 \
            curl nginx openssl | make_tree lan "$base_suite"
    fi
    if [[ $goal == bench ]]; then
        closure_of "$base_suite" dpdk-dev openvswitch-switch-dpdk | make_tree peers "$base_suite"
        # Debian 12's knows no vhost-user.
        closure_of "$new_suite" passt | make_tree passt "$new_suite"
    fi
}

# The one file of a tree that a pattern names.
only() {
    local found=()
    mapfile -t found < <(find "$1" -path "$1/$2")
    ((${#found[@]} == 1)) || die "$1 has ${#found[@]} files like $2, not one"
    printf '%s\n' "${found[0]}"
}

# `archive NAME COMMAND...` makes NAME.cpio.gz of the folder that COMMAND fills, unless what it is made of has not changed.
archive() {
    local name=$1 inputs
    shift
    inputs=$(cat "$cache/$tree.made" "$here/guest-init" "${BASH_SOURCE[0]}" | sha256sum)
    if [[ -f $cache/$name.cpio.gz && -f $cache/$name.made && $(<"$cache/$name.made") == "$inputs" ]]; then
        return
    fi
    rm -rf "$cache/$name.root" "$cache/$name.made"
    mkdir -p "$cache/$name.root"
    "$@" "$cache/$name.root"
    (cd "$cache/$name.root" && find . | sort | "$cache/guest/bin/busybox" cpio -o -H newc -R 0:0 2>>"$cache/log" | gzip -n -1) \
        >"$cache/$name.cpio.gz"
    rm -rf "$cache/$name.root"
    printf '%s\n' "$inputs" >"$cache/$name.made"
    say "$name.cpio.gz: made"
}

# `copy_programs TREE PROGRAM... ROOT`: programs of a tree, with the libraries that the tree's own loader finds for them.
copy_programs() {
    local tree=$1 root=${!#} programs=("${@:2:$#-2}") program libs lib loader
    loader=$(only "$tree" "*/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    # Loaded by name at run time, when iperf3 cancels a thread.
    libs=$(only "$tree" "*/libgcc_s.so.1")$'\n'
    mkdir -p "$root"/{bin,lib64}
    for program in "${programs[@]}"; do
        cp "$tree/$program" "$root/bin/"
        libs+=$("$loader" --library-path "$tree/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu" --list "$tree/$program" |
            awk '$2 == "=>" && $1 !~ /ld-linux/ { print $3 }')$'\n'
    done
    sed '/^$/d' <<<"$libs" | sort -u | while read -r lib; do
        [[ $lib == "$tree"/* ]] || die "the guest's tools need $lib, which its packages do not bring"
        cp -L "$lib" "$root/lib64/"
    done
    cp -L "$loader" "$root/lib64/ld-linux-x86-64.so.2"
    chmod 755 "$root"/bin/*
}

# /init, busybox, and three tools.
fill_base() {
    local root=$1 tree="$cache/guest"
    mkdir -p "$root"/{bin,proc,sys,dev,run,tmp,root,etc,modules}
    cp "$here/guest-init" "$root/init"
    cp "$tree/bin/busybox" "$root/bin/busybox"
    copy_programs "$tree" usr/bin/iperf3 bin/ip sbin/ethtool "$root"
    chmod 755 "$root/init"
}

# DHCP clients besides busybox's own, with the scripts and users that they want.
fill_clients() {
    local root=$1 tree="$cache/lan"
    copy_programs "$tree" sbin/dhclient usr/sbin/dhcpcd "$root"
    mkdir -p "$root"/{sbin,etc,usr/lib,var/lib/dhcp,var/lib/dhcpcd}
    cp "$tree/sbin/dhclient-script" "$root/sbin/"
    cp -r "$tree/usr/lib/dhcpcd" "$root/usr/lib/"
    printf '%s\n' 'root:x:0:0::/root:/bin/sh' 'dhcpcd:x:100:100::/var/lib/dhcpcd:/bin/false' >"$root/etc/passwd"
    printf '%s\n' 'root:x:0:' 'dhcpcd:x:100:' >"$root/etc/group"
}

# A program that fetches by HTTPS. Its libraries are large, which an emulated processor unpacks slowly.
fill_web() {
    copy_programs "$cache/lan" usr/bin/curl "$1"
}

# What a machine that routes has besides.
fill_router() {
    copy_programs "$cache/guest" sbin/tc "$1"
}

# `fill_modules FOLDER NAME... ROOT`: kernel modules in the order they are to be loaded. FOLDER/NAME puts one below /modules.
fill_modules() {
    local from=$1 root=${!#} names=("${@:2:$#-2}") name number=10 file to
    for name in "${names[@]}"; do
        file=$(only "$from" "*/${name##*/}.ko*")
        to=$(dirname "$root/modules/$name")/$number-${name##*/}.ko
        mkdir -p "${to%/*}"
        case $file in
            *.ko) cp "$file" "$to" ;;
            *.ko.xz) xz -dc "$file" >"$to" ;;
            *.ko.zst) zstd -qdc "$file" >"$to" ;;
            *) die "no way to unpack $file" ;;
        esac
        number=$((number + 1))
    done
}

# An initramfs for each kernel: archives may follow one another, and the later adds its files to the earlier's.
make_initramfs() {
    local tree
    tree=guest archive base fill_base
    tree=guest archive modules-kernel fill_modules "$cache/guest/lib/modules" "${kernel_modules[@]}"
    join guest modules-kernel
    if [[ $goal != demo ]]; then
        tree=lan archive clients fill_clients
        tree=$base_suite archive modules-uml-base fill_modules "$cache/$base_suite/usr/lib/uml/modules" "${base_uml_modules[@]}"
        join guest-clients modules-kernel clients
        join guest-uml-base modules-uml-base clients
        tree=$new_suite archive modules-uml-new fill_modules "$cache/$new_suite/usr/lib/uml/modules" "${new_uml_modules[@]}"
        join guest-uml-new modules-uml-new clients
        tree=lan archive web fill_web
        join guest-web modules-kernel web
        join guest-uml-web modules-uml-new web
        tree=guest archive router fill_router
        tree=$new_suite archive modules-router fill_modules "$cache/$new_suite/usr/lib/uml/modules" "${router_modules[@]}"
        join guest-router modules-uml-new router modules-router
    fi
}

# `join NAME PART...`: the base and what comes on top of it, in one file.
join() {
    local out="$cache/$1.cpio.gz" part parts=("$cache/base.cpio.gz") stale=0
    for part in "${@:2}"; do parts+=("$cache/$part.cpio.gz"); done
    for part in "${parts[@]}"; do [[ $out -nt $part ]] || stale=1; done
    if ((stale)); then
        cat "${parts[@]}" >"$out.new"
        mv "$out.new" "$out"
    fi
}

# --- programs to start ------------------------------------------------------------------------------------------------

# `launcher PATH SUITE END COMMAND...`: a program of a tree, run with the tree's own libraries laid over this machine's in a
# mount namespace of its own. Root makes one; anybody else needs a user namespace for it. A User Mode Linux is several
# processes, some of which outlive a killed first one, so END "with-its-children" gives it a PID namespace, whose first
# process is a shell, since the first process of one cannot end itself with a signal.
launcher() {
    local path=$1 suite=$2 options="--mount" run='exec "$@"'
    if [[ $3 == with-its-children ]]; then
        options="--mount --pid --fork --kill-child --mount-proc"
        run='"$@"; exit'
    fi
    shift 3
    mkdir -p "$(dirname "$path")"
    cat >"$path.new" <<SCRIPT
#!/bin/sh
# Made by tests/lab/prepare.sh.
[ "\$(id -u)" = 0 ] || user=--map-root-user
exec unshare \$user $options sh -c '
    mount --bind "$cache/$suite/usr/lib/x86_64-linux-gnu" /usr/lib/x86_64-linux-gnu || exit; $run' sh $* "\$@"
SCRIPT
    chmod 755 "$path.new"
    mv "$path.new" "$path"
}

# Before Debian 13 a package may still put files below /lib; the two folders become one.
merge_lib() {
    local tree="$cache/$1"
    if [[ -d $tree/lib/x86_64-linux-gnu && ! -L $tree/lib ]]; then
        mkdir -p "$tree/usr/lib/x86_64-linux-gnu"
        cp -a "$tree/lib/x86_64-linux-gnu/." "$tree/usr/lib/x86_64-linux-gnu/"
        rm -rf "$tree/lib/x86_64-linux-gnu"
    fi
}

peer_programs=(usr/bin/dpdk-testpmd usr/bin/ovs-vsctl usr/bin/ovs-appctl usr/bin/ovsdb-tool usr/sbin/ovsdb-server
    usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk)
# What the tests run in network namespaces of their own.
lan_programs=(bin/busybox bin/ping usr/bin/iperf3 usr/bin/openssl usr/bin/tcpdump usr/sbin/dnsmasq usr/sbin/nft usr/sbin/nginx)

make_launchers() {
    local suite program
    for suite in "$base_suite" "$new_suite"; do
        merge_lib "$suite"
        launcher "$cache/bin/$suite/qemu-system-x86_64" "$suite" alone \
            "$cache/$suite/usr/bin/qemu-system-x86_64" -L "$cache/$suite/usr/share/qemu" -L "$cache/$suite/usr/share/seabios" \
            -L "$cache/$suite/usr/lib/ipxe/qemu"
        launcher "$cache/bin/$suite/linux.uml" "$suite" with-its-children \
            "$cache/$suite/usr/bin/linux.uml"
    done
    merge_lib lan
    for program in "${lan_programs[@]}"; do
        launcher "$cache/bin/lan/${program##*/}" lan alone "$cache/lan/$program"
    done
    [[ $goal == bench ]] || return 0
    merge_lib peers
    for program in "${peer_programs[@]}"; do
        launcher "$cache/bin/peers/${program##*/}" peers alone "$cache/peers/$program"
    done
    merge_lib passt
    launcher "$cache/bin/passt/passt" passt alone "$cache/passt/usr/bin/passt"
}

# --- can this machine's KVM run a guest? ------------------------------------------------------------------------------

# /dev/kvm may be there and yet not run a stock kernel, so a guest is booted on it once per boot of this machine.
find_accel() {
    local qemu=qemu-system-x86_64 boot answer="$cache/accel" out
    accel="-accel tcg,thread=multi -cpu max"
    [[ $goal != demo ]] && qemu="$cache/bin/$base_suite/$qemu"
    boot=$(</proc/sys/kernel/random/boot_id)
    if [[ -f $answer && $(head -n 1 "$answer") == "$boot" ]]; then
        accel=$(tail -n 1 "$answer")
        return
    fi
    if [[ -r /dev/kvm && -w /dev/kvm ]]; then
        say "booting a guest on KVM, for at most $probe_seconds s ..."
        out=$(ulimit -c 0; timeout --signal=KILL "$probe_seconds" "$qemu" -accel kvm -cpu host -m 256M -nodefaults -no-user-config \
            -display none -serial stdio -no-reboot -kernel "$cache/vmlinuz" -initrd "$cache/guest.cpio.gz" \
            -append "console=ttyS0 quiet gw.poweroff" </dev/null 2>>"$cache/log" 9>&- || true)
        [[ $out == *"GUEST READY"* ]] && accel="-accel kvm -cpu host"
    fi
    printf '%s\n%s\n' "$boot" "$accel" >"$answer"
    say "guests run with: $accel"
}

# --- does this processor run the older User Mode Linux? ----------------------------------------------------------------

# Linux 6.1's knows no processor with a register set as large as AMX's. Where it does not boot the newer one stands in.
find_uml() {
    local boot answer="$cache/uml" out
    [[ $goal == demo ]] && return
    uml_61="$cache/bin/$base_suite/linux.uml" uml_61_initrd="$cache/guest-uml-base.cpio.gz"
    boot=$(</proc/sys/kernel/random/boot_id)
    if [[ ! -f $answer || $(head -n 1 "$answer") != "$boot" ]]; then
        out=$(ulimit -c 0; timeout --signal=KILL "$probe_seconds" "$uml_61" mem=256M quiet con=null con0=fd:0,fd:1 ssl=null \
            initrd="$uml_61_initrd" gw.poweroff </dev/null 2>>"$cache/log" 9>&- || true)
        if [[ $out == *"GUEST READY"* ]]; then out=boots; else out=fails; fi
        printf '%s\n%s\n' "$boot" "$out" >"$answer"
    fi
    if [[ $(tail -n 1 "$answer") == fails ]]; then
        say "Debian 12's User Mode Linux does not boot on this processor: the newer one stands in for it"
        uml_61="$cache/bin/$new_suite/linux.uml" uml_61_initrd="$cache/guest-uml-new.cpio.gz"
    fi
}

write_env() {
    {
        printf "%s='%s'\n" KERNEL "$cache/vmlinuz" INITRD "$cache/guest.cpio.gz" ACCEL "$accel" BOOT "$(</proc/sys/kernel/random/boot_id)" \
            GUEST_TREE "$cache/guest"
        if [[ $goal != demo ]]; then
            printf "%s='%s'\n" QEMU_72 "$cache/bin/$base_suite" QEMU_NEW "$cache/bin/$new_suite" \
                UML_61 "$uml_61" UML_61_INITRD "$uml_61_initrd" \
                UML_NEW "$cache/bin/$new_suite/linux.uml" UML_NEW_INITRD "$cache/guest-uml-new.cpio.gz" \
                ROUTER_INITRD "$cache/guest-router.cpio.gz" \
                WEB_INITRD "$cache/guest-web.cpio.gz" UML_WEB_INITRD "$cache/guest-uml-web.cpio.gz" \
                CLIENTS_INITRD "$cache/guest-clients.cpio.gz" NET_BIN "$cache/bin/lan"
        fi
        if [[ $goal == bench ]]; then
            printf "%s='%s'\n" PEERS "$cache/peers" PEERS_BIN "$cache/bin/peers" PASST "$cache/bin/passt/passt"
        fi
    } >"$cache/$goal.env.new"
    mv "$cache/$goal.env.new" "$cache/$goal.env"
}

# --- in order ---------------------------------------------------------------------------------------------------------

yes=0 goal=""
for arg in "$@"; do
    case $arg in
        --yes) yes=1 ;;
        demo | tests | bench) goal=$arg ;;
        *) goal="" && break ;;
    esac
done
[[ $goal ]] || { echo "usage: tests/lab/prepare.sh [--yes] demo|tests|bench" >&2; exit 2; }
[[ $(uname -m) == x86_64 ]] || die "only x86_64 guests are prepared, and this is $(uname -m)"
command -v apt-get dpkg >/dev/null || die "this needs Debian or Ubuntu"

mkdir -p "$cache"
exec 9>"$cache/lock"
flock --nonblock 9 || { say "waiting for another run to finish ..."; flock 9; }
: >"$log"

install_missing
find_mirror
find_keyring
set_up_apt "$base_suite"
[[ $goal != demo ]] && set_up_apt "$new_suite"
make_trees
ln -sf "$(only "$cache/guest" 'boot/vmlinuz-*')" "$cache/vmlinuz"
make_initramfs
[[ $goal != demo ]] && make_launchers
find_accel
find_uml
write_env
say "ready: $cache/$goal.env"
