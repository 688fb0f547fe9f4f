#include "disk_bench.h"

static struct disk_bench bench;

struct disk_bench *disk_bench_prepare(uint32_t backup_depth)
{
    struct disk_bench *b = &bench;
    rig_prepare(&b->rig, DISK_BENCH_SIZE);
    b->rig.config.backup_depth = backup_depth;
    b->disk = fake_disk_open(&b->rig, 7);
    b->manners = fake_disk_manners(b->disk);
    fake_disk_install(b->disk);
    return b;
}

void disk_bench_start(struct disk_bench *b, uint32_t slabs)
{
    rig_start(&b->rig);
    donor_open(&b->donor, DISK_BENCH_SIZE, 1 << 20);
    donor_attach(&b->donor, &b->rig, 0);
    for (uint32_t slab = 0; slab < slabs; slab++)
        CHECK_EQUAL(isw_device_slab_map(b->rig.device, slab, 0, 0), 0);
    rig_connect(&b->rig, &b->client, true);
}

void disk_bench_close(struct disk_bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    donor_close(&b->donor);
    fake_disk_close(b->disk);
    rig_end(&b->rig);
}
