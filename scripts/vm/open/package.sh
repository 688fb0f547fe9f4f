#!/bin/bash
# The Debian package is what people install: one file edited and one unit enabled on each of two machines, and swap works; it is
# there after a reboot; the package is upgraded while swap is on, is not removed while swap is on, and a purge leaves nothing.
# vm: machines=2 memory=1024 cores=2 disk=3G keep=1 deadline=1500
# guest: systemd
# needs: curl jq nc:netcat-openbsd
# before: scripts/package deb
. "$CHECKOUT/scripts/vm/guest/lib.sh"

export PATH=/usr/sbin:/usr/bin:/sbin:/bin # what is installed, not what is checked out
DONOR=10.99.0.2
FIRST=10.99.0.1
evidence() {
    systemctl --no-pager status 'infiniswap*' 2>&1 | cut -c -160 || true
    journalctl --no-pager -n 40 -u 'infiniswap*' | cut -c -200 || true
}
# There is no network here: dependencies are installed, and no list of packages is needed.
mkdir -p /run/lists/partial
# Minutes of an emulated machine: compiling what will be compiled when it is imported, and indexing all man pages.
rm -f /var/lib/man-db/auto-update
ln -sf /bin/true /usr/bin/py3compile
rm -f /usr/sbin/policy-rc.d # by which containers' images keep services from being started
apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dir::State::Lists=/run/lists "$@" < /dev/null; }
# A start takes a second elsewhere, and more than a minute on an emulated machine that has other work, too.
allow_slow_starts() {
    mkdir -p "/etc/systemd/system/$1.d"
    printf '[Service]\nTimeoutStartSec=900\n' > "/etc/systemd/system/$1.d/slow.conf"
    systemctl daemon-reload
}
in_swap() { swapon --show=NAME --noheadings | grep -q '^/dev/nbd'; }

# swap_is_used : a program with less memory than it needs pages to the device, and reads what it wrote.
swap_is_used() {
    rm -f /run/until /run/progress
    systemd-run --quiet --unit="job$1" -p MemoryMax=14M /usr/bin/python3 "$CHECKOUT/scripts/vm/jobs/block_job.py" 18 /run/until /run/progress
    local job
    job=$(systemctl show -P MainPID "job$1")
    while_job "$job" test -s /run/progress
    while_job "$job" swapped_out 1500
}
job_ends() {
    touch /run/until
    wait_until 300 job_gone "$1"
    [ "$(systemctl is-failed "job$1")" != failed ]
}
job_gone() { [ "$(systemctl is-active "job$1")" != active ]; }

if [ ! -e /var/lib/rebooted ]; then
    say "apt install ./infiniswap_*.deb"
    cp "$CHECKOUT"/build/package/infiniswap_*.deb /root
    cd /root
    apt_get install --no-install-recommends ./infiniswap_*.deb | tail -n 3
    [ "$(command -v infiniswap)" = /usr/bin/infiniswap ]
    [ "$(systemctl is-active infiniswapd)" = inactive ] # nothing begins by itself
fi

if [ "$VM" = 2 ]; then
    allow_slow_starts infiniswapd.service
    sed -i "s/^memory = .*/memory = \"128MiB\"/; s/^#listen = .*/listen = \"$DONOR:7401\"/; s/^#headroom = .*/headroom = \"64MiB\"/" \
        /etc/infiniswap/infiniswapd.toml
    systemctl enable --now infiniswapd
    say "lends: $(curl -sf "http://$DONOR:7401/v1/health")"
    nc -l -p 7999 > /run/order # until the other machine says so
    before=$(systemctl show -P MainPID infiniswapd)
    incarnation=$(curl -sf "http://$DONOR:7401/v1/health" | jq -r .incarnation)
    say "upgrade of the lending machine: leases and pages are kept"
    apt_get install --reinstall ./infiniswap_*.deb | tail -n 3
    still_the_same() { [ "$(curl -sf "http://$DONOR:7401/v1/health" | jq -r .incarnation)" = "$incarnation" ]; }
    wait_until 100 still_the_same
    [ "$(systemctl show -P MainPID infiniswapd)" != "$before" ] # by the upgrade it is the new one
    told() { echo upgraded > "/dev/tcp/$FIRST/7998"; }
    wait_until 300 told
    sleep infinity
fi

if [ ! -e /var/lib/rebooted ]; then
    allow_slow_starts infiniswap-swap@.service
    cat > /etc/infiniswap/swap0.toml << TOML
size = "128MiB"
slab_size = "8MiB"
backup = "/var/lib/infiniswap/swap0.img"
peers = ["$DONOR"]
map = "eager"
peer_timeout_ms = 20000
request_deadline_ms = 5000
TOML
    donor_lends() { curl -sf "http://$DONOR:7401/v1/health"; }
    wait_until 200 donor_lends
    say "systemctl enable --now infiniswap-swap@swap0"
    systemctl enable --now infiniswap-swap@swap0
    in_swap
    swap_is_used 1
    served=$(systemctl show -P MainPID infiniswap-device@swap0)

    say "apt remove while swap is on"
    if apt_get remove infiniswap > /run/removal 2>&1; then die "removed while swap is on"; fi
    grep -E '^infiniswap: /dev/nbd[0-9]+ is in use as swap; .*infiniswap-swap@swap0' /run/removal
    in_swap
    [ "$(dpkg-query -W -f '${db:Status-Status}' infiniswap)" = installed ]

    say "upgrade while swap is on, here and there"
    echo go > "/dev/tcp/$DONOR/7999"
    apt_get install --reinstall ./infiniswap_*.deb | tail -n 3
    [ "$(systemctl show -P MainPID infiniswap-device@swap0)" = "$served" ] # the old one goes on
    timeout 1200 nc -l -p 7998 > /run/answer
    job_goes_on "$(systemctl show -P MainPID job1)" /run/progress "$(cat /run/progress)"
    wait_until 100 asked swap0 /v1/peers 'all(.state == "up")'
    job_ends 1

    say "reboot"
    touch /var/lib/rebooted
    reboot_machine
fi

say "after the reboot"
systemctl start --no-block multi-user.target
wait_until 200 in_swap
swap_is_used 2
job_ends 2

say "swap off, purge"
systemctl disable --now infiniswap-swap@swap0
if in_swap; then die "still in use"; fi
apt_get purge infiniswap | tail -n 3
left=$(find /etc /run /usr/bin /usr/lib /usr/share /var/lib /lib/systemd \( -path /usr/lib/modules -o -path /run/commands \) -prune -o \
    -name '*infiniswap*' -print 2> /dev/null | grep -v '/slow.conf$\|infiniswap-swap@.service.d$\|cache/infiniswap-vm' || true)
[ -z "$left" ] || die "left behind: $left"
no_io_errors
say "all right"
