#!/bin/bash
# The Debian package is what people install: one file edited and one unit enabled on each of two machines of a cluster, and swap
# works, with certificates and sealed pages, all within what the units allow. The lending daemon is upgraded, killed and stopped meanwhile, and a unit with
# two shards loses one of them and its parent; the package is not removed while swap is on; a reboot with swap on ends everything in order, and swap is there after it; a purge leaves nothing.
# vm: machines=2 memory=1024 cores=2 disk=3G disk=1M keep=1 deadline=1500
# guest: systemd
# needs: curl jq dbus-daemon:dbus nc:netcat-openbsd
# before: scripts/vm/compiled_package
. "$CHECKOUT/scripts/vm/guest/lib.sh"

export PATH=/usr/sbin:/usr/bin:/sbin:/bin # what is installed, not what is checked out
FIRST=10.99.0.1
DONOR=10.99.0.2
DAEMON=https://10.99.0.$VM:7401
evidence() {
    systemctl --no-pager status 'infiniswap*' 2>&1 | cut -c -160 || true
    journalctl --no-pager -n 60 -u 'infiniswap*' | cut -c -200 || true
    [ "$VM" = 1 ] || timeout 60 bash -c "until echo failed > /dev/tcp/$FIRST/7998; do sleep 1; done" 2> /dev/null || true
}
# There is no network here: dependencies are installed, and neither a list of packages nor this host's own hooks are needed.
mkdir -p /run/apt/lists/partial
rm -f /etc/apt/apt.conf.d/*
echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/quick
apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dir::State::Lists=/run/apt/lists "$@" < /dev/null
}
# Minutes of an emulated machine: indexing all man pages; and compiling what the host has compiled (scripts/vm/compiled_package).
rm -f /var/lib/man-db/auto-update
rm -f /usr/bin/py3compile
printf '#!/bin/sh\nexec tar -C / -xf %s/build/package/compiled.tar\n' "$CHECKOUT" > /usr/bin/py3compile
chmod +x /usr/bin/py3compile
rm -f /usr/sbin/policy-rc.d # by which containers' images keep services from being started
# A start takes a second elsewhere, and more than a minute on an emulated machine that has other work, too.
for unit in infiniswapd infiniswap-swap@; do
    mkdir -p "/run/systemd/system/$unit.service.d"
    printf '[Service]\nTimeoutStartSec=900\n' > "/run/systemd/system/$unit.service.d/slow.conf"
done
# The daemon has a /tmp of its own: where the checkout lies in this host's, it must be shown to it.
case $CHECKOUT in
    /tmp/* | /var/tmp/*) echo "BindReadOnlyPaths=$CHECKOUT" >> /run/systemd/system/infiniswapd.service.d/slow.conf ;;
esac
systemctl daemon-reload

in_swap() { swapon --show=NAME --noheadings | grep -q '^/dev/nbd'; }
main_pid() { systemctl show -P MainPID "$1"; }
serves() { [ "$(systemctl is-active infiniswapd)" = active ] && by_tls -o /dev/null "$DAEMON/v1/health"; }
by_tls() { curl -sf "${CERTIFICATE[@]}" "$@"; }
incarnation() { by_tls "$DAEMON/v1/health" | jq -r .incarnation; }
stored() { systemctl show -P NFileDescriptorStore infiniswapd; }
# lend MEMORY HEADROOM : the one file that a host edits which lends.
lend() {
    sed -i "s/^memory = .*/memory = \"$1\"/; s/^#listen = .*/listen = \"10.99.0.$VM:7401\"/; s/^#headroom = .*/headroom = \"$2\"/
        s/^#log_level = .*/log_level = \"info\"/; s/^#lease_ttl_s = .*/lease_ttl_s = 3600/; s/^#stop_timeout_s = .*/stop_timeout_s = 20/" \
        /etc/infiniswap/infiniswapd.toml
    systemctl enable --now infiniswapd # returns when it is ready, and not before
    [ "$(systemctl is-active infiniswapd)" = active ]
    wait_until 100 serves # though a handshake may take longer here than anybody waits for one
}

# ---- the first machine orders, the second one does, and answers ----
sent() { echo "$2" > "/dev/tcp/$1"; }
# order WORD, is_done WORD : tells the other machine, and waits until it has done it.
order() { wait_until 300 sent "$DONOR/7999" "$1"; }
is_done() {
    timeout 2400 nc -l -p 7998 > /run/answer || die "the other machine says nothing about: $1"
    [ "$(cat /run/answer)" = "$1" ] || die "the other machine fails at: $1"
}
answer() { wait_until 300 sent "$FIRST/7998" "$1"; }
# ordered WORD : waits for the order.
ordered() {
    nc -l -p 7999 > /run/order
    say "the first machine says: $(cat /run/order)"
    [ "$(cat /run/order)" = "$1" ]
}

start_job() {
    rm -f /run/progress
    systemd-run --quiet --unit=job -p After=infiniswap-swap@swap0.service -p MemoryMax=11M \
        /usr/bin/python3 "$CHECKOUT/scripts/vm/jobs/block_job.py" 12 /run/until /run/progress 3 # the processor is for what else goes on
    job=$(main_pid job)
    while_job "$job" test -s /run/progress
    while_job "$job" swapped_out $(($(vmstat_value pswpout) + 1500))
}
# ---- a unit with two shards, while the other machine has its work ----
areas() { [ "$(swapon --show=PRIO --noheadings | grep -cx ' *0')" = "$1" ]; }
shard() { ask pair /v1/status ".shards[$1].pid"; }
both_serve() { asked pair /v1/status ".state == \"serving\" and .shards[$1].pid != $2"; }
another_parent() { [ "$(main_pid infiniswap-device@pair)" != "$1" ] && [ "$(shard 0)" = "$2" ]; }
# pair_kill : started and swapped on; a shard that is killed comes back.
pair_kill() {
    local pid
    systemctl start infiniswap-swap@pair
    areas 2
    pid=$(shard 1)
    kill -9 "$pid"
    wait_until 100 both_serve 1 "$pid"
    kept_as pair raw
}
# pair_stop : a killed parent takes its shards up again, and its swap stays on; a stop ends all of it.
pair_stop() {
    local pid stays
    stays=$(shard 0) pid=$(main_pid infiniswap-device@pair)
    systemctl kill --kill-whom=main --signal=KILL infiniswap-device@pair
    wait_until 100 another_parent "$pid" "$stays"
    wait_until 100 systemctl is-active infiniswap-swap@pair
    areas 2
    if journalctl -q --no-pager -u infiniswap-swap@pair | grep '/dev/nbd.* detached'; then die "swap was taken away with the parent"; fi
    systemctl stop infiniswap-device@pair
    areas 0
    [ "$(systemctl show -P Result infiniswap-device@pair)" = success ]
    if pgrep -af 'device serve pair'; then die "shards are left"; fi
}

# replace_served : the upgraded program takes the old one's place under the swap that is on, as docs/install.md says.
replace_served() {
    systemctl kill --signal=TERM infiniswap-device@swap0
    wait_until 300 another_serves
    wait_until 100 systemctl is-active infiniswap-swap@swap0
    in_swap
    if journalctl -q --no-pager -u infiniswap-swap@swap0 | grep '/dev/nbd.* detached'; then die "swap was taken away with the old program"; fi
    asked swap0 /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0'
}
another_serves() {
    local pid
    pid=$(main_pid infiniswap-device@swap0)
    [ "$pid" != "$served" ] && asked swap0 /v1/status ".pid == $pid and .connections >= 1 and .nbd_dead == 0"
}

goes_on() { job_goes_on "$job" /run/progress "$(cat /run/progress)"; }

if [ ! -e /var/lib/rebooted ]; then
    say "apt install ./infiniswap_*.deb"
    cp "$CHECKOUT"/build/package/infiniswap_*.deb /root
    cd /root
    apt_get install --no-install-recommends ./infiniswap_*.deb | tail -n 3
    [ "$(command -v infiniswap)" = /usr/bin/infiniswap ]
    [ "$(systemctl is-active infiniswapd)" = inactive ] # nothing begins by itself
    if [ "$VM" = 1 ]; then found_cluster; else join_cluster; fi
fi

if [ "$VM" = 2 ]; then
    lend 128MiB 64MiB
    say "lends, as a user of its own and within what the unit allows"
    pid=$(main_pid infiniswapd)
    [ "$(stored)" = 2 ]
    systemctl show -P StatusText infiniswapd | grep "lending at $DAEMON"
    [ "$(stat -c %U "/proc/$pid")" = infiniswap ]
    [ "$(cat "/proc/$pid/oom_score_adj")" = -900 ]
    grep -E '^(VmLck|CapEff|NoNewPrivs|Seccomp):' "/proc/$pid/status"
    at_least "KiB of its own memory locked" "$(awk '/^VmLck:/ { print $2 }' "/proc/$pid/status")" 8192
    fuses() {
        local process
        while read -r process; do
            cat "/proc/$process/oom_score_adj"
        done < /sys/fs/cgroup/system.slice/infiniswapd.service/cgroup.procs | grep -cx 1000
    }
    at_least "fuses for the OOM killer" "$(fuses)" 1
    journalctl -q --no-pager -u infiniswapd | grep 'pressure triggers: /proc/pressure/memory'

    # A device of the scenario's own, which neither beats nor asks meanwhile.
    cat > /run/lease.py << 'PYTHON'
import json, ssl, sys, urllib.request
from infiniswap.nbd.client import NbdClient

MIB, TLS = 1 << 20, "/etc/infiniswap/tls"
context = ssl.create_default_context(cafile=f"{TLS}/ca.pem")
context.load_cert_chain(f"{TLS}/host.pem", f"{TLS}/host.key")
def call(method, path, token=None, body=None):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(sys.argv[2] + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=120, context=context) as answer:
        return json.load(answer)

if sys.argv[1] == "take":
    body = {"device": "own", "device_id": "0f6a2c1e-5d5b-4a39-9a3c-6f1b7c1d2e30", "size_bytes": 4 * MIB, "slab_bytes": MIB}
    lease = call("POST", "/v1/leases", None, body)
    for slab in range(4):
        call("PUT", f"/v1/leases/{lease['lease']}/slabs/{slab}", lease["token"])
    json.dump(lease, open("/run/lease", "w"))
lease = json.load(open("/run/lease"))
ticket = call("POST", f"/v1/leases/{lease['lease']}/tickets", lease["token"], {})
with NbdClient(tuple(lease["address"]), ticket["export"], 120) as client:
    for slab in range(4):
        if sys.argv[1] == "take":
            client.write(slab * MIB, bytes([slab + 1]) * MIB)
        assert client.read(slab * MIB, MIB) == bytes([slab + 1]) * MIB, f"slab {slab} is not what was written"
beat = call("POST", f"/v1/leases/{lease['lease']}/heartbeat", lease["token"], {})
assert beat["slabs"] == [0, 1, 2, 3] and beat["incarnation"] == lease["incarnation"], beat
print("four slabs are as they were written")
PYTHON
    own_lease() { python3 /run/lease.py "$1" "$DAEMON"; }
    own_lease take
    first=$(incarnation)
    waiting() { journalctl -q --no-pager -u infiniswapd | grep -c 'stopping; the leases wait for the next start' || true; }
    drained() { journalctl --no-pager -u infiniswapd | grep 'are moved away before the stop'; }
    another_pid() { [ "$(main_pid infiniswapd)" != "$pid" ] && serves; }
    kept() {
        [ "$(incarnation)" = "$first" ] || die "the daemon has begun a new life"
        [ "$(stored)" = 2 ] || die "systemd keeps $(stored) descriptors"
        own_lease check || die "pages are not what was written"
    }

    ordered upgrade
    apt_get install --reinstall ./infiniswap_*.deb | tail -n 3
    wait_until 100 another_pid # it is the new one's
    kept
    [ "$(waiting)" = 1 ] # it has found out that this is no stop for good
    answer upgrade

    ordered kill
    pid=$(main_pid infiniswapd)
    systemctl kill --signal=KILL infiniswapd
    wait_until 60 another_pid
    kept
    answer kill

    ordered stop
    if drained; then die "a restart is no stop, and nothing is moved away for it"; fi
    systemctl stop infiniswapd
    drained # memory is given back, and a new life begins
    [ "$(waiting)" = 1 ]
    [ "$(stored)" = 0 ]
    systemctl start infiniswapd
    [ "$(incarnation)" != "$first" ]
    answer stop

    ordered checkout
    answer checkout
    say "the checkout's own units take the place of the package's"
    # The daemon has a user of its own, who must get to the checkout: in this machine's throw-away overlay he may.
    folder=$CHECKOUT
    while [ "$folder" != / ]; do
        chmod o+x "$folder"
        folder=$(dirname "$folder")
    done
    pid=$(main_pid infiniswapd)
    "$CHECKOUT/.venv/bin/infiniswap" systemd install
    systemctl daemon-reload
    systemctl restart infiniswapd
    wait_until 60 another_pid
    tr '\0' ' ' < "/proc/$(main_pid infiniswapd)/cmdline" | grep "$CHECKOUT/.venv/bin/infiniswapd"
    ordered end
    answer end
    sleep infinity # the first machine's end is the end of both
fi

if [ ! -e /var/lib/rebooted ]; then
    lend 32MiB 64MiB # as hosts do that borrow at other times
    cat > /etc/infiniswap/swap0.toml << TOML
size = "128MiB"
slab_size = "8MiB"
backup = "/var/lib/infiniswap/swap0.log"
backup_layout = "log"
peers = ["$DONOR", "$FIRST"]
map = "eager"
peer_timeout_ms = 20000
request_deadline_ms = 5000
[attach]
priority = 5 # the job's pages go here alone
TOML
    cat > /etc/infiniswap/pair.toml << TOML
size = "16MiB"
slab_size = "8MiB"
shards = 2
backup = "/var/lib/infiniswap/pair.img"
backup_layout = "raw"
TOML
    donor_lends() { by_tls "https://$DONOR:7401/v1/health"; }
    wait_until 200 donor_lends
    say "systemctl enable --now infiniswap-swap@swap0"
    systemctl enable --now infiniswap-swap@swap0
    in_swap
    [ -s /run/infiniswap/state/swap0/seals ]
    infiniswap doctor swap0 > /run/doctor || die "the doctor finds a failure: $(cat /run/doctor)"
    grep -E 'memory locked|io flusher|oom_score_adj|alive' /run/doctor
    grep '^ok .*threads are real-time' /run/doctor
    start_job
    served=$(main_pid infiniswap-device@swap0)

    order upgrade # meanwhile
    say "apt remove while swap is on"
    kill -STOP "$job" # its pages stay out, and the processor is for apt
    if apt_get remove infiniswap > /run/removal 2>&1; then die "removed while swap is on"; fi
    grep -E '^infiniswap: /dev/nbd[0-9]+ is in use as swap; .*infiniswap-swap@swap0' /run/removal
    in_swap
    [ "$(dpkg-query -W -f '${db:Status-Status}' infiniswap)" = installed ]

    say "upgrade while swap is on"
    apt_get install --reinstall ./infiniswap_*.deb | tail -n 3
    [ "$(main_pid infiniswap-device@swap0)" = "$served" ] # the old one goes on
    kill -CONT "$job"
    replace_served # meanwhile
    is_done upgrade
    goes_on
    for event in kill stop; do
        order $event
        "pair_$event" # meanwhile
        is_done $event
        goes_on
    done
    wait_until 100 asked swap0 /v1/peers 'all(.state == "up")'
    kept_as swap0 log

    say "reboot with swap on and pages out"
    for unit in infiniswap-device@ infiniswap-swap@ infiniswapd; do
        mkdir -p "/run/systemd/system/$unit.service.d"
        # The plus: outside of what the unit allows. Of two dollars systemd makes one.
        # shellcheck disable=SC2016
        printf '[Service]\nExecStopPost=+/bin/sh -c "echo $$SERVICE_RESULT > /run/ended.%s"\n' $unit > "/run/systemd/system/$unit.service.d/ended.conf"
    done
    # Runs when every process is gone and every mount taken down; the machine's second disk keeps its word.
    mkdir -p /lib/systemd/system-shutdown
    cat > /lib/systemd/system-shutdown/verdict << 'SCRIPT'
#!/bin/bash
exec > /dev/ttyS0 2>&1
word=right
expect() { [ "$2" = "$3" ] || { echo "FAILED: $1 is '$2', not '$3'"; word=wrong; }; }
expect "the end" "$1" reboot
expect "swap areas" "$(tail -n +2 /proc/swaps)" ""
expect "attached devices" "$(cat /sys/block/nbd*/pid)" ""
for unit in infiniswap-device@ infiniswap-swap@ infiniswapd; do expect "the end of $unit" "$(cat /run/ended.$unit)" success; done
expect "errors of the kernel" "$(dmesg | grep -iE 'I/O error|Read-error on swap|Out of memory|oom-kill|hung_task|blocked for more')" ""
echo "--- the end of the machine is $word"
echo $word | dd of=/dev/vdb conv=fsync status=none
SCRIPT
    chmod +x /lib/systemd/system-shutdown/verdict
    systemctl daemon-reload
    order checkout # goes on meanwhile
    is_done checkout
    kill -0 "$job"
    swapon --show
    touch /var/lib/rebooted
    reboot_machine
fi

say "after the reboot"
[ "$(head -n 1 /dev/vdb | tr -d '\0')" = right ]
systemctl start --no-block multi-user.target
wait_until 200 in_swap
serves
start_job
touch /run/until
job_ended() { [ "$(systemctl is-active job)" != active ]; }
wait_until 300 job_ended
[ "$(systemctl is-failed job)" != failed ] # each number was right
kept_as swap0 log

order end
is_done end

say "swap off, purge"
systemctl disable --now infiniswap-swap@swap0
if in_swap; then die "still in use"; fi
rm /lib/systemd/system-shutdown/verdict
apt_get purge infiniswap | tail -n 3
if pgrep -af '/usr/bin/infiniswap'; then die "still running"; fi
# What the machine has written lies in one layer above the host's root.
mkdir -p /run/layer
mount /dev/vda /run/layer
left=$(find /run/layer/data /run/infiniswap* -name '*infiniswap*' ! -type c ! -path '/run/layer/data/root/infiniswap_*.deb' \
    ! -path "/run/layer/data$CHECKOUT*" -print 2> /dev/null || true)
[ -z "$left" ] || die "left behind: $left"
no_io_errors
say "all right"
