#include "fake_image.h"

#include <sys/mman.h>
#include <unistd.h>

enum { BLOCK = ISW_PAGE_BYTES, DIRTY = 1, SYNCING = 2 };

static uint8_t *map(int fd, uint64_t bytes)
{
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

/* Holes are passed over: a log's file has little in it at first. */
static void settle(struct fake_image *image)
{
    for (off_t at = 0, end; (at = lseek(image->fd, at, SEEK_DATA)) >= 0; at = end) {
        end = lseek(image->fd, at, SEEK_HOLE);
        memcpy(image->durable + at, image->now + at, (size_t)(end - at));
    }
    memset(image->flags, 0, image->bytes / BLOCK);
}

void fake_image_open(struct fake_image *image, const struct rig *rig)
{
    off_t bytes = lseek(rig->config.backup_fd, 0, SEEK_END);
    CHECK(bytes > 0 && bytes % BLOCK == 0);
    *image = (struct fake_image){.log = rig->log, .device_bytes = rig->config.size_bytes, .bytes = (uint64_t)bytes};
    image->fd = dup(rig->config.backup_fd);
    image->now = map(image->fd, image->bytes);
    image->durable = shared_memory(image->bytes, &image->durable_fd);
    image->syncing = calloc(image->bytes / BLOCK, BLOCK);
    image->flags = calloc(image->bytes / BLOCK, 1);
    CHECK(image->fd >= 0 && image->syncing && image->flags);
    settle(image);
}

void fake_image_close(struct fake_image *image)
{
    munmap(image->now, image->bytes);
    munmap(image->durable, image->bytes);
    close(image->fd);
    close(image->durable_fd);
    free(image->syncing);
    free(image->flags);
}

void fake_image_start(struct fake_image *image)
{
    if (image->log)
        settle(image);
}

static void change(struct fake_image *image, uint64_t at, const void *data, uint64_t bytes)
{
    for (uint64_t block = at / BLOCK; block < (at + bytes) / BLOCK; block++)
        image->flags[block] |= DIRTY;
    if (data)
        memcpy(image->now + at, data, bytes);
    else
        memset(image->now + at, 0, bytes);
}

void fake_image_move(struct fake_image *image, const struct backup_request *r, uint64_t most)
{
    uint64_t at = r->offset, end = r->offset + most;
    if (r->kind == BACKUP_ZERO)
        change(image, at, NULL, most);
    for (uint32_t i = 0; r->kind != BACKUP_ZERO && i < r->vectors && at < end; i++) {
        uint64_t bytes = r->iov[i].iov_len < end - at ? r->iov[i].iov_len : end - at;
        if (r->kind == BACKUP_WRITE)
            change(image, at, r->iov[i].iov_base, bytes);
        else
            memcpy(r->iov[i].iov_base, image->now + at, bytes);
        at += bytes;
    }
}

void fake_image_sync_begins(struct fake_image *image)
{
    for (uint64_t block = 0; block < image->bytes / BLOCK; block++)
        if (image->flags[block] & DIRTY) {
            image->flags[block] = SYNCING;
            memcpy(image->syncing + block * BLOCK, image->now + block * BLOCK, BLOCK);
        }
}

static void sync_fails(struct fake_image *image, uint64_t block, bool loses)
{
    uint8_t *now = image->now + block * BLOCK;
    if (loses && !memcmp(now, image->syncing + block * BLOCK, BLOCK)) {
        memcpy(now, image->durable + block * BLOCK, BLOCK);
        image->flags[block] = 0;
    } else {
        image->flags[block] = DIRTY;
    }
}

void fake_image_sync_ends(struct fake_image *image, bool ok, bool loses)
{
    for (uint64_t block = 0; block < image->bytes / BLOCK; block++) {
        if (!(image->flags[block] & SYNCING))
            continue;
        if (!ok) {
            sync_fails(image, block, loses);
            continue;
        }
        memcpy(image->durable + block * BLOCK, image->syncing + block * BLOCK, BLOCK);
        image->flags[block] &= (uint8_t)~SYNCING;
    }
}

void fake_image_read(const struct fake_image *image, bool durable, uint8_t *out)
{
    if (image->log)
        read_log(durable ? image->durable_fd : image->fd, durable ? 0 : ISW_LOG_SAME_BOOT, image->device_bytes, out);
    else
        memcpy(out, durable ? image->durable : image->now, image->device_bytes);
}
