/* A device and real donors in one process, as the tests put them together. */
#ifndef RIG_H
#define RIG_H

#include "check.h"
#include "nbd_client.h"

#include "infiniswap_engine.h"

enum { RIG_EVENTS = 256 };

struct rig {
    struct isw_device_config config;
    isw_device *device;
    uint32_t slabs;
    struct isw_page *page; /* the table in the state */
    struct isw_intent *intents;
    bool log;     /* the backup is one (rig_log) */
    int seals_fd; /* rig_seal: of the memory behind the file of seals */
};
extern const uint8_t rig_seal_key[ISW_SEAL_KEY_BYTES];

/* A configuration to be changed before rig_start: 8 slabs of 1 MiB, 4 MiB pending, memory for the state, an empty backup. */
void rig_prepare(struct rig *rig, uint64_t size_bytes);
/* What goes to donors is sealed; before rig_start.  ISW_TEST_SEALED in the environment: rig_prepare does so. */
void rig_seal(struct rig *rig);
/* The backup is a log, with no more room than it needs, so that it cleans all the time; before rig_start. */
void rig_log(struct rig *rig);
void rig_crowd(struct rig *rig); /* the same where it is one: the models' are */
/* A test twice: NAME over an image, and NAME_log, where rig_prepare makes a log of the backup (as everywhere with
 * ISW_TEST_LAYOUT=log in the environment), one with room: what is written is what the test asks for. */
#define TEST_ON_BOTH(name)         \
    static void test_##name(void); \
    TEST(name##_log)               \
    {                              \
        rig_logs = true;           \
        test_##name();             \
        rig_logs = false;          \
    }                              \
    TEST(name)
extern bool rig_logs;
void rig_start(struct rig *rig);
/* Stops in order (the test fails if that takes too long) and frees the device; state and backup stay. */
void rig_stop(struct rig *rig);
/* Frees it as if its process had been killed, but that what is handed in to a fake disk is still done. */
void rig_kill(struct rig *rig);
/* Frees what rig_prepare took. */
void rig_end(struct rig *rig);
/* A negotiated connection. */
void rig_connect(struct rig *rig, struct client *client, bool structured);
uint64_t rig_counter(const struct rig *rig, enum isw_device_counter counter);
struct isw_slab_view rig_slab(const struct rig *rig, uint32_t slab);
/* Reads the backup file, be it an image or a log; ee: pages that cannot be read. */
void rig_image(const struct rig *rig, uint8_t *out);
void read_log(int fd, uint32_t flags, uint64_t size_bytes, uint8_t *out);
/* Byte of the backup file where the page is, which nobody writes meanwhile. */
uint64_t rig_place(const struct rig *rig, uint64_t page);
/* Takes news until one of the kind comes; others are dropped. */
struct isw_event rig_await(struct rig *rig, uint32_t kind);
void rig_unmap(struct rig *rig, uint32_t slab);
/* Nothing pending, nothing in flight to the backup. */
void rig_await_backup(struct rig *rig);

/* A donor: the real memory server, with every slab mapped. */
struct donor {
    isw_memory *memory;
    uint32_t number;
    uint8_t *slabs; /* size of the device */
    uint64_t size_bytes, slab_bytes;
    int memory_fd;
};
/* Returns the descriptor of its memory. */
int donor_open(struct donor *donor, uint64_t size_bytes, uint64_t slab_bytes);
/* As kill -9 and a new start: connections end, memory is gone. */
void donor_kill(struct donor *donor);
/* As a restart that keeps its memory: connections end. */
void donor_restart(struct donor *donor);
/* A slab given back: taken out of the export, overwritten, and lent anew. */
void donor_scrub(struct donor *donor, uint32_t slab);
void donor_close(struct donor *donor);
void donor_attach(struct donor *donor, struct rig *rig, uint32_t peer);
/* The donor's side of a new connection is served; returns the other. */
int donor_connect(struct donor *donor);

/* Two ends of a stream: TCP on loopback, or a UNIX pair with small buffers (small: as small as the system allows). */
void stream_pair(int fds[2], bool tcp, bool small);
void *shared_memory(uint64_t bytes, int *fd);

#endif
