#!/bin/bash
# Scenario pressure with a service that is not protected, to see that it can fail: it should not come to its end (docs/vm.md has
# what was seen). WITHOUT may name io-flusher, real-time and threads (the backup's).
# vm: machines=2 memory=512 cores=2 disk=1G deadline=900
# needs: curl jq
WITHOUT="io-flusher real-time threads"
HUNG_TASK_S=120
. "$CHECKOUT/scripts/vm/scenarios/pressure.sh"
