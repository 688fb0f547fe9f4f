#!/bin/bash
# A donor in a memory cgroup with a limit, an application growing beside it: the donor gives memory back each time before any
# runs out, also while one of its owners stands still; a rush that outruns everything ends neither the application nor the
# daemon. fio verifies a device on that memory throughout, by the kernel's nbd: no error, no wrong byte.
# vm: memory=1280 cores=2 disk=1G deadline=1500
# needs: curl jq fio qemu-img:qemu-utils
. "$CHECKOUT/scripts/vm/guest/lib.sh"
quick_commands

LIMIT=480 # MiB for donor and application together, neither of which may swap; some 60 of them are the programs
HEADROOM=72
LENT=288 # at most, as far as the donor finds room
STEP=24 # a third of the headroom: what is asked for at once must not by itself be an emergency
# The daemon looks at its host each second, asks owners for 150 ms and gives them 800 ms: what remains of two seconds is work, which
# takes 15 to 30 times as long here, and longer where the host has other work. Taken for a failure is what waits for somebody.
RESTORED_S=$((PATIENCE * 5))

group=/sys/fs/cgroup/donor
mkdir "$group"
echo "${LIMIT}M" > "$group/memory.max"
echo 0 > "$group/memory.swap.max" 2> /dev/null || true # not there without swap
evidence() {
    curl -s "http://$DAEMON_HOST:7401/v1/stats" | jq -c '.memory, .host, .counts' || true
    grep . "$group/memory.current" "$group/memory.events" || true
    tail -n 8 "$LOGS"/* || true
    dmesg | tail -n 30
}
killed() { awk '$1 == "oom_kill" { print $2 }' "$group/memory.events"; }

scratch /scratch
DAEMON_GROUP=$group DAEMON_HEADROOM=${HEADROOM}MiB
start_daemons 1 ${LENT}MiB
start_device busy --size 128MiB --slab-size 4MiB --backup /scratch/busy.img --map eager
start_device idle --size 160MiB --slab-size 4MiB --backup /scratch/idle.img --map eager
mapped() { asked "$1" /v1/status ".mapped_slabs >= $2"; }
daemon=${DAEMON_PIDS[1]}

load_nbd
busy=$(infiniswap device attach busy)
# Every page is really there before anybody grows: promised memory that is empty would be no loss.
python -c 'import os; block = os.urandom(1 << 20); [os.write(1, block) for _ in range(160)]' > /scratch/idle.data
dd if=/scratch/idle.data of="$busy" bs=1M count=128 oflag=direct status=none
qemu-img convert -n -f raw -O raw /scratch/idle.data "nbd+unix:///idle?socket=/run/infiniswap/idle.sock"
wait_until 100 mapped busy 24
wait_until 100 mapped idle 24
filled() { [ "$(lent_kib)" -ge $((160 << 10)) ]; }
wait_until 100 filled # what was written before its slab was mapped is promoted
echo "the donor's slabs hold $(lent_kib) KiB"

verify() {
    local round=0
    while [ ! -e /run/until ]; do
        round=$((round + 1))
        fio --name=verify --filename="$busy" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k --size=32M \
            --io_size=4M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=$round --thread \
            > "$LOGS/fio" 2>&1 || { cat "$LOGS/fio"; exit 1; }
        echo "$round" > /run/rounds.new
        mv /run/rounds.new /run/rounds
    done
}
(trap - ERR; verify) &
fio=$!
while_job $fio test -s /run/rounds

coproc APPLICATION { in_group "$group" python "$CHECKOUT/scripts/vm/jobs/application.py" "$group" $HEADROOM; }
exec 7<&"${APPLICATION[0]}" 8>&"${APPLICATION[1]}"
# order WORD... : what the application answers.
order() {
    echo "$*" >&8
    read -r -t $((PATIENCE * 300)) answer <&7 || die "the application does not answer to: $*"
    echo "application: $*: $answer"
}
# grow WHEN [MIB] : one step more, and headroom is there again in time.
grow() {
    order step "${2:-$STEP}" $RESTORED_S
    [[ $answer == restored* ]] || die "$1: the headroom is not restored within $RESTORED_S s"
    [ "$(killed)" = 0 ] || die "$1: the kernel had to kill"
    kill -0 "$fio" || die "$1: fio has ended"
}

say "growing beside owners that answer"
order free
read -r _ free <<< "$answer"
[ "$free" -gt $HEADROOM ] || die "the donor has lent its headroom"
before=$(lent_kib)
grow "owners answer" $((free - HEADROOM + STEP / 2)) # the first that cannot be had without a slab
for _ in 1 2 3; do grow "owners answer"; done
evicted=$(lent_kib)
[ "$evicted" -lt $((before - (STEP << 10))) ] || die "nothing was taken back"
ask busy /v1/status '"busy: \(.mapped_slabs) slabs mapped"'
ask idle /v1/status '"idle: \(.mapped_slabs) slabs mapped"'

say "growing while an owner stands still"
still=$(ask idle /v1/status .pid)
kill -STOP "$still"
grow "an owner stands still"
kill -CONT "$still"
[ "$(lent_kib)" -lt "$evicted" ] || die "nothing was taken back"
wait_until 60 peers_up idle

say "a rush that outruns everything"
order rush $((HEADROOM + 64)) # so much more than is free
lives() { order check && kill -0 "$daemon"; }
lives || die "the application or the daemon was killed"
[[ $answer == right* ]] || die "the application's memory: $answer"
restored() { order step 0 $RESTORED_S && [[ $answer == restored* ]]; }
restored || die "the headroom is not restored after the rush"
echo "processes of the group that the kernel killed: $(killed)"
kill -0 "$daemon" || die "the daemon was killed"
curl -sf "http://$DAEMON_HOST:7401/v1/health"

say "all data is there"
passes=$(cat /run/rounds)
while_job $fio passes_above /run/rounds "$passes"
touch /run/until
wait "$fio"
qemu-img compare -f raw -F raw /scratch/idle.data "nbd+unix:///idle?socket=/run/infiniswap/idle.sock"
for name in busy idle; do
    asked $name /v1/stats '.failures.lost_pages == 0 and .failures.checksum_mismatches == 0 and .failures.request_errors == 0'
done
curl -sf "http://$DAEMON_HOST:7401/v1/stats"
infiniswap device detach busy
stop_device busy
stop_device idle
kill -0 "$daemon"
dmesg | grep -iE 'I/O error|Buffer I/O' && die "the kernel saw errors"
say "all right"
