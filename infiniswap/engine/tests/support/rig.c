#include "rig.h"
#include "log.h"
#include "seed.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { QUIET_SEGMENTS = 64 }; /* enough that no checkpoint is due before some of them are begun */
bool rig_logs;

void *shared_memory(uint64_t bytes, int *fd)
{
    *fd = memfd_create("engine-test", MFD_CLOEXEC);
    CHECK(*fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

void stream_pair(int fds[2], bool tcp, bool small)
{
    if (tcp) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof address;
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
        fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(listener >= 0 && fds[0] >= 0 && bind(listener, (struct sockaddr *)&address, length) == 0);
        CHECK(listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&address, &length) == 0);
        CHECK(connect(fds[0], (struct sockaddr *)&address, length) == 0);
        fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        CHECK(fds[1] >= 0 && close(listener) == 0);
        setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    } else {
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    }
    for (int i = 0; small && i < 2; i++) {
        int least = 1;
        setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &least, sizeof least);
        setsockopt(fds[i], SOL_SOCKET, SO_RCVBUF, &least, sizeof least);
    }
}

static void make_log(struct rig *rig, uint32_t spare_segments)
{
    uint64_t bytes;
    CHECK_EQUAL(isw_log_file_bytes(rig->config.size_bytes, &bytes), 0);
    bytes += (uint64_t)spare_segments * LOG_SEGMENT_BLOCKS * LOG_BLOCK_BYTES;
    CHECK(ftruncate(rig->config.backup_fd, 0) == 0 && ftruncate(rig->config.backup_fd, (off_t)bytes) == 0);
    CHECK_EQUAL(isw_log_format(rig->config.backup_fd, rig->config.size_bytes), 0);
    rig->log = true;
}

void rig_prepare(struct rig *rig, uint64_t size_bytes)
{
    uint64_t intents_offset, pages_offset, total;
    int state_fd;
    memset(rig, 0, sizeof *rig);
    CHECK_EQUAL(isw_state_layout(size_bytes, &intents_offset, &pages_offset, &total), 0);
    uint8_t *state = shared_memory(total, &state_fd);
    close(state_fd);
    seed_state(state);
    rig->page = (struct isw_page *)(void *)(state + pages_offset);
    rig->intents = (struct isw_intent *)(void *)(state + intents_offset);
    int backup = memfd_create("backup", MFD_CLOEXEC);
    CHECK(backup >= 0 && ftruncate(backup, (off_t)size_bytes) == 0);
    rig->config = (struct isw_device_config){
        .size_bytes = size_bytes,
        .slab_bytes = 1 << 20,
        .pending_limit_bytes = 4 << 20,
        .state = state,
        .state_bytes = total,
        .state_fd = -1,
        .backup_fd = backup,
        .backup_sparse = 1,
        .backup_depth = 16,
        .writeback_delay_ms = 5,
        .connections_max = 16,
        .peers_max = 8,
        .peer_timeout_ms = 30000,
        .client_stall_timeout_ms = 30000,
    };
    if (getenv("ISW_TEST_SEALED"))
        rig_seal(rig);
    const char *layout = getenv("ISW_TEST_LAYOUT");
    if (rig_logs || (layout && !strcmp(layout, "log")))
        make_log(rig, QUIET_SEGMENTS);
}

void rig_log(struct rig *rig)
{
    make_log(rig, 0);
}

void rig_crowd(struct rig *rig)
{
    if (rig->log)
        rig_log(rig);
}

static isw_log *open_file(int fd, uint32_t flags)
{
    char error[256] = "";
    isw_log *log = isw_log_open(fd, flags, error, sizeof error);
    if (!log)
        FAIL("the log cannot be opened: %s", error);
    return log;
}

static isw_log *open_log(const struct rig *rig, uint32_t flags)
{
    return open_file(rig->config.backup_fd, flags | ISW_LOG_SAME_BOOT);
}

const uint8_t rig_seal_key[ISW_SEAL_KEY_BYTES] = "the root key of all of the rigs";

void rig_seal(struct rig *rig)
{
    uint64_t intents_offset, pages_offset, total;
    if (rig->config.seals)
        return;
    CHECK_EQUAL(isw_seals_layout(rig->config.size_bytes, &intents_offset, &pages_offset, &total), 0);
    struct isw_seals_header *header = shared_memory(total, &rig->seals_fd);
    isw_sealer_free(isw_sealer_new(rig_seal_key, header->salt, header->check));
    header->serial = (1ull << 32) - 1000; /* the next key is near */
    rig->config.seals = header;
    rig->config.seals_bytes = total;
    rig->config.seal_key = rig_seal_key;
}

void rig_start(struct rig *rig)
{
    char error[256] = "";
    rig->config.backup_log = rig->log ? open_log(rig, 0) : NULL;
    rig->device = isw_device_start(&rig->config, error, sizeof error);
    if (!rig->device)
        FAIL("the device does not start: %s", error);
    isw_device_slabs(rig->device, &rig->slabs);
}

void rig_stop(struct rig *rig)
{
    CHECK_EQUAL(isw_device_stop(rig->device, WAIT_S_MAX * 1000), 0);
    CHECK_EQUAL(rig_counter(rig, ISW_DEVICE_pending_pages), 0);
    CHECK_EQUAL(rig_counter(rig, ISW_DEVICE_in_flight), 0);
    CHECK_EQUAL(rig_counter(rig, ISW_DEVICE_connections), 0);
    isw_device_free(rig->device);
    rig->device = NULL;
    if (rig->log)
        isw_log_close(rig->config.backup_log);
}

/* A log that is closed signs its end: its file is taken from it first. */
void rig_kill(struct rig *rig)
{
    isw_device_free(rig->device);
    rig->device = NULL;
    if (!rig->log)
        return;
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(nothing >= 0 && dup2(nothing, rig->config.backup_log->fd) >= 0);
    close(nothing);
    isw_log_close(rig->config.backup_log);
}

void rig_end(struct rig *rig)
{
    munmap(rig->config.state, rig->config.state_bytes);
    if (rig->config.seals) {
        munmap(rig->config.seals, rig->config.seals_bytes);
        close(rig->seals_fd);
    }
    close(rig->config.backup_fd);
}

void rig_connect(struct rig *rig, struct client *client, bool structured)
{
    int fds[2];
    stream_pair(fds, false, false);
    uint32_t flags = structured ? ISW_CONNECTION_STRUCTURED | ISW_CONNECTION_ALLOCATION : 0;
    CHECK_EQUAL(isw_device_connection_add(rig->device, fds[1], flags, NULL, 0), 0);
    client_open(client, fds[0], structured);
}

uint64_t rig_counter(const struct rig *rig, enum isw_device_counter counter)
{
    uint32_t count;
    return __atomic_load_n(&isw_device_counters(rig->device, &count)[counter], __ATOMIC_RELAXED);
}

struct isw_slab_view rig_slab(const struct rig *rig, uint32_t slab)
{
    uint32_t count;
    const struct isw_slab_view *view = &isw_device_slabs(rig->device, &count)[slab];
    return (struct isw_slab_view){
        .page_ins = __atomic_load_n(&view->page_ins, __ATOMIC_RELAXED),
        .page_outs = __atomic_load_n(&view->page_outs, __ATOMIC_RELAXED),
        .state = __atomic_load_n(&view->state, __ATOMIC_RELAXED),
        .peer = __atomic_load_n(&view->peer, __ATOMIC_RELAXED),
        .remote_pages = __atomic_load_n(&view->remote_pages, __ATOMIC_RELAXED),
        .backup_pages = __atomic_load_n(&view->backup_pages, __ATOMIC_RELAXED),
        .pending_pages = __atomic_load_n(&view->pending_pages, __ATOMIC_RELAXED),
        .generation = __atomic_load_n(&view->generation, __ATOMIC_RELAXED),
    };
}

void rig_image(const struct rig *rig, uint8_t *out)
{
    if (!rig->log) {
        CHECK(pread(rig->config.backup_fd, out, rig->config.size_bytes, 0) == (ssize_t)rig->config.size_bytes);
        return;
    }
    read_log(rig->config.backup_fd, ISW_LOG_SAME_BOOT, rig->config.size_bytes, out);
}

void read_log(int fd, uint32_t flags, uint64_t size_bytes, uint8_t *out)
{
    isw_log *log = open_file(fd, ISW_LOG_READ_ONLY | flags); /* its own: the device's may be in use */
    for (uint64_t at = 0; at < size_bytes; at += ISW_PAGE_BYTES)
        if (isw_log_read(log, out + at, at, ISW_PAGE_BYTES))
            memset(out + at, 0xee, ISW_PAGE_BYTES);
    isw_log_close(log);
}

uint64_t rig_place(const struct rig *rig, uint64_t page)
{
    if (!rig->log)
        return page * ISW_PAGE_BYTES;
    isw_log *log = open_log(rig, ISW_LOG_READ_ONLY);
    CHECK(log->place[page] && log->place[page] != LOG_PLACE_BAD);
    uint64_t at = log_place_offset(log, log->place[page]);
    isw_log_close(log);
    return at;
}

struct isw_event rig_await(struct rig *rig, uint32_t kind)
{
    uint64_t deadline = now_ns() + WAIT_S_MAX * 1000000000ull;
    struct isw_event event;
    for (;;) {
        while (isw_device_events(rig->device, &event, 1))
            if (event.kind == kind)
                return event;
        struct pollfd wait = {.fd = isw_device_event_fd(rig->device), .events = POLLIN};
        poll(&wait, 1, 100);
        if (now_ns() > deadline)
            FAIL("no news of kind %u came", kind);
    }
}

void rig_unmap(struct rig *rig, uint32_t slab)
{
    CHECK_EQUAL(isw_device_slab_unmap(rig->device, slab), 0);
    CHECK_EQUAL(rig_await(rig, ISW_EVENT_SLAB_RELEASED).slab, slab);
}

void rig_await_backup(struct rig *rig)
{
    WAIT_UNTIL(!rig_counter(rig, ISW_DEVICE_pending_pages) && !rig_counter(rig, ISW_DEVICE_backup_in_flight) &&
               !rig_counter(rig, ISW_DEVICE_punch_slabs));
}

/* ---- donors ---- */

static void donor_start(struct donor *donor)
{
    struct isw_memory_config config = {
        .threads = 1, .exports_max = 4, .connections_max = 64, .client_stall_timeout_ms = 30000};
    char error[256] = "";
    donor->memory = isw_memory_start(&config, error, sizeof error);
    if (!donor->memory)
        FAIL("the donor does not start: %s", error);
}

static void donor_open_export(struct donor *donor)
{
    uint32_t slabs = (uint32_t)((donor->size_bytes + donor->slab_bytes - 1) / donor->slab_bytes);
    int number = isw_memory_export_open(donor->memory, donor->slab_bytes, slabs);
    CHECK(number >= 0);
    donor->number = (uint32_t)number;
    for (uint32_t i = 0; i < slabs; i++)
        CHECK_EQUAL(isw_memory_slab_map(donor->memory, donor->number, i, donor->slabs + i * donor->slab_bytes, -1, 0), 0);
}

int donor_open(struct donor *donor, uint64_t size_bytes, uint64_t slab_bytes)
{
    int fd;
    *donor = (struct donor){.size_bytes = size_bytes, .slab_bytes = slab_bytes};
    donor->slabs = shared_memory(size_bytes, &fd);
    donor->memory_fd = fd;
    donor_start(donor);
    donor_open_export(donor);
    return fd;
}

void donor_kill(struct donor *donor)
{
    CHECK_EQUAL(isw_memory_export_close(donor->memory, donor->number), 0);
    memset(donor->slabs, 0xdd, donor->size_bytes);
    donor_open_export(donor);
}

void donor_restart(struct donor *donor)
{
    CHECK_EQUAL(isw_memory_export_close(donor->memory, donor->number), 0);
    donor_open_export(donor);
}

void donor_scrub(struct donor *donor, uint32_t slab)
{
    uint64_t at = slab * donor->slab_bytes, end = at + donor->slab_bytes;
    CHECK_EQUAL(isw_memory_slab_unmap(donor->memory, donor->number, slab), 0);
    memset(donor->slabs + at, 0xee, (end < donor->size_bytes ? end : donor->size_bytes) - at);
    CHECK_EQUAL(isw_memory_slab_map(donor->memory, donor->number, slab, donor->slabs + at, -1, 0), 0);
}

void donor_close(struct donor *donor)
{
    isw_memory_stop(donor->memory);
    munmap(donor->slabs, donor->size_bytes);
    close(donor->memory_fd);
}

int donor_connect(struct donor *donor)
{
    int fds[2];
    stream_pair(fds, true, false);
    CHECK_EQUAL(isw_memory_connection_add(donor->memory, donor->number, fds[1], 0, NULL, 0), 0);
    return fds[0];
}

void donor_attach(struct donor *donor, struct rig *rig, uint32_t peer)
{
    int read_fd = donor_connect(donor), write_fd = donor_connect(donor);
    CHECK_EQUAL(isw_device_peer_attach(rig->device, peer, read_fd, write_fd), 0);
}
