#!/bin/bash
# Each unit is started for real, by systemd as the machine's first process: the daemon says when it is ready, keeps leases and
# pages over a restart, a crash and a stop under use, and forgets them when it is stopped for good; a program swaps meanwhile.
# All this within what the units allow. At last the machine is shut down with swap on, which ends in order.
# vm: memory=1408 cores=2 disk=1G deadline=1500
# guest: systemd
# needs: curl jq dbus-daemon:dbus
. "$CHECKOUT/scripts/vm/guest/lib.sh"

[ "$(cat /proc/1/comm)" = systemd ]
systemctl start dbus # by which a service that is not root's asks what systemd is about to do
scratch /scratch
mkdir -p /etc/infiniswap
cat > /etc/infiniswap/infiniswapd.toml << 'TOML'
memory = "128MiB"
headroom = "32MiB"
listen = "127.0.0.1:7401"
lease_ttl_s = 900
log_level = "info"
TOML
cat > /etc/infiniswap/swap0.toml << 'TOML'
size = "256MiB"
slab_size = "8MiB"
backup = "/scratch/swap0.img"
peers = ["127.0.0.1:7401"]
map = "eager"
peer_timeout_ms = 20000
request_deadline_ms = 5000
TOML
# The daemon has a user of its own, who must get to the checkout: in this machine's throw-away overlay he may.
folder=$CHECKOUT
while [ "$folder" != / ]; do
    chmod o+x "$folder"
    folder=$(dirname "$folder")
done
infiniswap systemd install
id infiniswap
# A start takes a second elsewhere, and more than a minute on an emulated machine that has other work, too.
mkdir -p /etc/systemd/system/infiniswapd.service.d
printf '[Service]\nTimeoutStartSec=900\n' > /etc/systemd/system/infiniswapd.service.d/slow.conf
systemctl daemon-reload

DAEMON=http://127.0.0.1:7401
evidence() {
    systemctl --no-pager status infiniswapd infiniswap-device@swap0 infiniswap-swap@swap0 2>&1 | cut -c -160 || true
    journalctl --no-pager -n 60 -u 'infiniswap*' | cut -c -200 || true
}
incarnation() { curl -sf $DAEMON/v1/health | jq -r .incarnation; }
serves() { [ "$(systemctl is-active infiniswapd)" = active ] && curl -sf $DAEMON/v1/health; }
main_pid() { systemctl show -P MainPID "$1"; }
stored() { systemctl show -P NFileDescriptorStore infiniswapd; }

say "the daemon: a start returns when it is ready, and not before"
systemctl start infiniswapd
serves
[ "$(stored)" = 2 ]
systemctl show -P StatusText infiniswapd | grep 'lending at http://127.0.0.1:7401'
[ "$(stat -c %U "/proc/$(main_pid infiniswapd)")" = infiniswap ]
[ "$(cat "/proc/$(main_pid infiniswapd)/oom_score_adj")" = -900 ]
grep -E '^(VmLck|CapEff|NoNewPrivs|Seccomp):' "/proc/$(main_pid infiniswapd)/status"
at_least "KiB of its own memory locked" "$(awk '/^VmLck:/ { print $2 }' "/proc/$(main_pid infiniswapd)/status")" 8192
fuses() {
    local pid
    while read -r pid; do
        cat "/proc/$pid/oom_score_adj"
    done < /sys/fs/cgroup/system.slice/infiniswapd.service/cgroup.procs | grep -cx 1000
}
at_least "fuses for the OOM killer" "$(fuses)" 1
journalctl -q --no-pager -u infiniswapd | grep 'pressure triggers: /proc/pressure/memory'

# A device of the scenario's own, which neither beats nor asks meanwhile.
cat > /run/lease.py << 'PYTHON'
import json, sys, urllib.request
from infiniswap.nbd.client import NbdClient

MIB = 1 << 20
def call(method, path, token=None, body=None):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(sys.argv[2] + path, data, headers, method=method), timeout=120) as answer:
        return json.load(answer)

if sys.argv[1] == "take":
    body = {"device": "own", "device_id": "0f6a2c1e-5d5b-4a39-9a3c-6f1b7c1d2e30", "size_bytes": 4 * MIB, "slab_bytes": MIB}
    lease = call("POST", "/v1/leases", None, body)
    for slab in range(4):
        call("PUT", f"/v1/leases/{lease['lease']}/slabs/{slab}", lease["token"])
    json.dump(lease, open("/run/lease", "w"))
lease = json.load(open("/run/lease"))
with NbdClient(tuple(lease["address"]), lease["export"], 120) as client:
    for slab in range(4):
        if sys.argv[1] == "take":
            client.write(slab * MIB, bytes([slab + 1]) * MIB)
        assert client.read(slab * MIB, MIB) == bytes([slab + 1]) * MIB, f"slab {slab} is not what was written"
beat = call("POST", f"/v1/leases/{lease['lease']}/heartbeat", lease["token"], {})
assert beat["slabs"] == [0, 1, 2, 3] and beat["incarnation"] == lease["incarnation"], beat
print("four slabs are as they were written")
PYTHON
own_lease() { python /run/lease.py "$1" $DAEMON; }
own_lease take
first=$(incarnation)

say "the device and its swap area"
systemctl start infiniswap-swap@swap0
swapon --show --noheadings | grep /dev/nbd
[ "$(systemctl is-active infiniswap-device@swap0)" = active ]
infiniswap doctor swap0 > /run/doctor || die "the doctor finds a failure: $(cat /run/doctor)"
grep -E 'memory locked|io flusher|oom_score_adj|alive' /run/doctor
grep '^ok .*threads are real-time' /run/doctor
start_job() {
    rm -f /run/until /run/progress
    systemd-run --quiet --unit=job -p After=infiniswap-swap@swap0.service -p MemoryMax=28M -p Environment="OPENBLAS_NUM_THREADS=1" \
        "$(command -v python)" "$CHECKOUT/scripts/vm/jobs/numpy_job.py" 32 /run/until /run/progress
    job=$(main_pid job)
    while_job "$job" test -s /run/progress
    while_job "$job" swapped_out $(($(vmstat_value pswpout) + 3000))
}
start_job

waiting() { journalctl -q --no-pager -u infiniswapd | grep -c 'stopping; the leases wait for the next start' || true; }
say "systemctl restart infiniswapd"
systemctl restart infiniswapd
serves
[ "$(waiting)" = 1 ] # it has found out that this is no stop for good
[ "$(incarnation)" = "$first" ]
[ "$(stored)" = 2 ]
own_lease check
job_goes_on "$job" /run/progress "$(cat /run/progress)"

say "the daemon is killed with -9"
before=$(main_pid infiniswapd)
systemctl kill --signal=KILL infiniswapd
another_pid() { [ "$(main_pid infiniswapd)" != "$before" ] && serves; }
wait_until 60 another_pid
[ "$(incarnation)" = "$first" ]
own_lease check
job_goes_on "$job" /run/progress "$(cat /run/progress)"

say "systemctl stop and start: everything moved away before, memory given back, a new incarnation"
drained() { journalctl --no-pager -u infiniswapd | grep 'are moved away before the stop'; }
if drained; then die "a restart is no stop, and nothing is moved away for it"; fi
systemctl stop infiniswapd
drained
[ "$(waiting)" = 1 ]
[ "$(stored)" = 0 ]
systemctl start infiniswapd
[ "$(incarnation)" != "$first" ]
job_goes_on "$job" /run/progress "$(cat /run/progress)"

say "the job ends"
touch /run/until
job_ended() { [ "$(systemctl is-active job)" != active ]; }
wait_until 300 job_ended
[ "$(systemctl is-failed job)" != failed ]
say "shut down with swap on and pages out"
for unit in infiniswap-device infiniswap-swap infiniswapd; do
    name=$unit@.service
    [ $unit != infiniswapd ] || name=$unit.service
    mkdir -p "/etc/systemd/system/$name.d"
    # The plus: outside of what the unit allows. Of two dollars systemd makes one.
    # shellcheck disable=SC2016
    printf '[Service]\nExecStopPost=+/bin/sh -c "echo $$SERVICE_RESULT > /run/ended.%s"\n' $unit > "/etc/systemd/system/$name.d/ended.conf"
done
# Runs when every process is gone and every mount taken down: its word is the scenario's.
mkdir -p /lib/systemd/system-shutdown
cat > /lib/systemd/system-shutdown/verdict << 'SCRIPT'
#!/bin/bash
exec > /dev/ttyS0 2>&1
code=0
expect() { [ "$2" = "$3" ] || { echo "FAILED: $1 is '$2', not '$3'"; code=1; }; }
expect "the end" "$1" poweroff
expect "swap areas" "$(tail -n +2 /proc/swaps)" ""
expect "attached devices" "$(cat /sys/block/nbd*/pid)" ""
for unit in infiniswap-device infiniswap-swap infiniswapd; do expect "the end of $unit" "$(cat /run/ended.$unit)" success; done
expect "errors of the kernel" "$(dmesg | grep -iE 'I/O error|Read-error on swap|Out of memory|oom-kill|hung_task|blocked for more')" ""
[ $code = 0 ] && echo "--- all right"
echo $code > /dev/ttyS1
SCRIPT
chmod +x /lib/systemd/system-shutdown/verdict
# By default the machine ends with the scenario, which the shutdown is about to end.
mkdir -p /run/systemd/system/scenario.service.d
printf '[Service]\nExecStopPost=\n' > /run/systemd/system/scenario.service.d/end.conf
systemctl daemon-reload
start_job
swapon --show
systemctl start --no-block --job-mode=replace-irreversibly poweroff.target # what systemctl poweroff comes to
sleep infinity                                                            # until the machine ends, within the deadline
