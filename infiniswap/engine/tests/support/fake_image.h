/* What is on a fake disk, and what would be after a power cut: a raw image, or the file of a log. */
#ifndef FAKE_IMAGE_H
#define FAKE_IMAGE_H

#include "backup.h"
#include "check.h"
#include "rig.h"

struct fake_image {
    bool log;
    uint64_t device_bytes, bytes; /* of the device, of the disk */
    int fd, durable_fd;
    uint8_t *now, *durable, *syncing;
    uint8_t *flags; /* a block's: is it to be synced, and by the sync under way */
};

/* The rig's backup file is what reads see. */
void fake_image_open(struct fake_image *image, const struct rig *rig);
void fake_image_close(struct fake_image *image);
/* A new process has it.  Whoever opens a log to write to it has synced all that is there, past the fake disk. */
void fake_image_start(struct fake_image *image);
/* Moves bytes between the request and the image, up to `most`. */
void fake_image_move(struct fake_image *image, const struct backup_request *request, uint64_t most);
/* One at a time, and it answers for what was done when it began.  One that fails may lose what it was about: what was not
 * written since reads as it was after the last good one. */
void fake_image_sync_begins(struct fake_image *image);
void fake_image_sync_ends(struct fake_image *image, bool ok, bool loses);
/* The device's pages as they would be read; ee: those that cannot be. */
void fake_image_read(const struct fake_image *image, bool durable, uint8_t *out);

#endif
