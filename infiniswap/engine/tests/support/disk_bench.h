/* A device over a fake disk, one donor and one client, for tests of what goes to the backup and when. */
#ifndef DISK_BENCH_H
#define DISK_BENCH_H

#include "fake_backup.h"
#include "rig.h"

enum { DISK_BENCH_SIZE = 4 << 20 };

struct disk_bench {
    struct rig rig;
    struct fake_disk *disk;
    struct fake_manners *manners;
    struct donor donor;
    struct client client;
    uint8_t image[DISK_BENCH_SIZE]; /* for what is to be seen of the disk */
};

/* For changes of configuration; then _start: the device, the donor attached, the first slabs mapped to it, the client connected. */
struct disk_bench *disk_bench_prepare(uint32_t backup_depth);
void disk_bench_start(struct disk_bench *bench, uint32_t slabs);
/* An orderly stop, after which nothing may be left. */
void disk_bench_close(struct disk_bench *bench);

#endif
