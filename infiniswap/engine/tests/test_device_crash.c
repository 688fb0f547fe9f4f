/* Proves invariant 11: a device process killed with SIGKILL at any moment under load leaves, in the state file, at the donors
 * and on the backup, every acknowledged write and of the unacknowledged ones either version; a new device goes on from
 * there.  The rules by which the state is read are those of infiniswap/device/recovery.py. */
#include "load.h"
#include "seals.h"
#include "seed.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = (2 << 20) + (300 << 10), SLAB = 1 << 20, SLABS = 3, DONORS = 2, PAGE = ISW_PAGE_BYTES, PAGES = SIZE / PAGE };

/* What the two processes share besides state, backup and memory: descriptors by their numbers, and where slabs are. */
struct shared {
    int state_fd, seals_fd /* -1: pages are not sealed */, backup_fd, memory_fd[DONORS], ready_fd;
    int peer_fd[DONORS][2], client_fd[LOAD_CLIENTS];
    uint64_t chance;
    bool unmaps, guesses; /* guesses: pages are read before they are asked for ... */
    uint64_t guessed;     /* ... and so many of them by clients, in all lives */
    uint32_t book[SLABS]; /* donor + 1 that may hold pages of the slab: written before the device maps it */
};

static uint32_t slab_bytes(uint32_t slab)
{
    return slab == SLABS - 1 ? SIZE % SLAB : SLAB;
}

/* ---- the device's process ---- */

static void map_and_unmap(isw_device *device, struct shared *shared, struct chance *chance, bool *draining,
                          uint8_t *const *memory)
{
    uint32_t slab = (uint32_t)chance_below(chance, SLABS), donor = (uint32_t)chance_below(chance, DONORS);
    struct isw_event event;
    while (isw_device_events(device, &event, 1)) {
        CHECK(event.kind != ISW_EVENT_MISMATCH && event.kind != ISW_EVENT_SLAB_LOST && event.kind != ISW_EVENT_PEER_LOST);
        if (event.kind != ISW_EVENT_SLAB_RELEASED)
            continue;
        shared->book[event.slab] = 0; /* given back: somebody else's now */
        memset(memory[event.peer] + event.slab * SLAB, 0xee, slab_bytes(event.slab));
        draining[event.slab] = false;
    }
    if (draining[slab])
        return;
    if (!shared->book[slab]) {
        CHECK_EQUAL(isw_device_slab_forget(device, slab), 0);
        shared->book[slab] = donor + 1;
        CHECK_EQUAL(isw_device_slab_map(device, slab, donor, 0), 0);
    } else if (shared->unmaps && chance_in(chance, 3)) {
        int result = isw_device_slab_unmap(device, slab);
        CHECK_EQUAL(result, 0);
        draining[slab] = true;
    }
}

static _Noreturn void be_the_device(struct shared *shared)
{
    struct chance chance = chance_start(shared->chance);
    uint64_t guessed = shared->guessed;
    bool draining[SLABS] = {false};
    uint8_t *memory[DONORS];
    struct rig rig;
    rig_prepare(&rig, SIZE);
    uint64_t intents_offset, pages_offset;
    isw_state_layout(SIZE, &intents_offset, &pages_offset, &rig.config.state_bytes);
    rig.config.state = mmap(NULL, rig.config.state_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, shared->state_fd, 0);
    if (shared->seals_fd >= 0) {
        rig_seal(&rig);
        rig.config.seals = mmap(NULL, rig.config.seals_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, shared->seals_fd, 0);
    }
    rig.config.backup_fd = shared->backup_fd;
    rig.config.pending_limit_bytes = 2 << 20;
    rig.config.writeback_delay_ms = (uint32_t)chance_below(&chance, 30);
    rig.config.prefetch_floor_us = shared->guesses;
    rig_start(&rig);
    for (uint32_t i = 0; i < DONORS; i++) {
        memory[i] = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, shared->memory_fd[i], 0);
        CHECK_EQUAL(isw_device_peer_attach(rig.device, i, shared->peer_fd[i][0], shared->peer_fd[i][1]), 0);
    }
    for (uint32_t slab = 0; slab < SLABS; slab++)
        if (shared->book[slab])
            CHECK_EQUAL(isw_device_slab_map(rig.device, slab, shared->book[slab] - 1, 1), 0);
    for (uint32_t i = 0; i < LOAD_CLIENTS; i++)
        CHECK_EQUAL(isw_device_connection_add(rig.device, shared->client_fd[i],
                                              i % 2 ? 0 : ISW_CONNECTION_STRUCTURED | ISW_CONNECTION_ALLOCATION, NULL, 0), 0);
    CHECK(write(shared->ready_fd, "r", 1) == 1);
    for (;;) {
        map_and_unmap(rig.device, shared, &chance, draining, memory);
        shared->guessed = guessed + rig_counter(&rig, ISW_DEVICE_prefetch_hits);
        pause_us((uint32_t)chance_below(&chance, 4000));
    }
}

/* ---- the test's process ---- */

struct world {
    struct rig rig; /* not started: state and backup */
    struct load load;
    struct donor donor[DONORS];
    struct shared *shared;
    int shared_fd, state_fd, memory_fd[DONORS];
    uint8_t *image;
    uint32_t settled_old, settled_new, writing;
    struct isw_page found[PAGES]; /* the table as the dead device left it */
    isw_sealer *sealer; /* NULL: pages are not sealed */
    uint64_t serial;    /* that the last device came to */
};

static int inherited(int fd)
{
    int copy = dup(fd); /* without close-on-exec */
    CHECK(copy >= 0);
    return copy;
}

static pid_t start_device(struct world *w)
{
    extern char **environ;
    struct shared *s = w->shared;
    int ready[2], keep[LOAD_CLIENTS];
    char number[16], name[64], *arguments[] = {name, name, NULL};
    pid_t pid;
    CHECK(pipe2(ready, O_CLOEXEC) == 0);
    s->state_fd = inherited(w->state_fd);
    s->seals_fd = w->sealer ? inherited(w->rig.seals_fd) : -1;
    s->backup_fd = inherited(w->rig.config.backup_fd);
    s->ready_fd = inherited(ready[1]);
    close(ready[1]);
    for (uint32_t i = 0; i < DONORS; i++) {
        s->memory_fd[i] = inherited(w->memory_fd[i]);
        for (uint32_t k = 0; k < 2; k++) {
            int fd = donor_connect(&w->donor[i]);
            s->peer_fd[i][k] = inherited(fd);
            close(fd);
        }
    }
    for (uint32_t i = 0; i < LOAD_CLIENTS; i++) {
        int fds[2];
        stream_pair(fds, false, false);
        s->client_fd[i] = inherited(fds[1]);
        close(fds[1]);
        keep[i] = fds[0];
    }
    int shared_fd = inherited(w->shared_fd);
    snprintf(number, sizeof number, "%d", shared_fd);
    snprintf(name, sizeof name, "%s", check_name());
    setenv("ISW_CRASH_SHARED", number, 1);
    CHECK(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environ) == 0);
    unsetenv("ISW_CRASH_SHARED");
    close(shared_fd);
    close(s->state_fd);
    if (s->seals_fd >= 0)
        close(s->seals_fd);
    close(s->backup_fd);
    close(s->ready_fd);
    for (uint32_t i = 0; i < DONORS; i++) {
        close(s->memory_fd[i]);
        close(s->peer_fd[i][0]);
        close(s->peer_fd[i][1]);
    }
    for (uint32_t i = 0; i < LOAD_CLIENTS; i++) {
        close(s->client_fd[i]);
        client_open(&w->load.client[i], keep[i], i % 2 == 0);
    }
    struct pollfd wait = {.fd = ready[0], .events = POLLIN};
    char byte;
    CHECK(poll(&wait, 1, WAIT_S_MAX * 1000) == 1 && read(ready[0], &byte, 1) == 1);
    close(ready[0]);
    return pid;
}

static struct world *explained;

static void explain(void)
{
    const struct world *w = explained;
    uint64_t page = model_wrong_at / PAGE;
    uint32_t donor = w->shared->book[model_wrong_at / SLAB];
    fprintf(stderr, "\nfound: meta %08x, checksum %08x; settled: meta %08x; slab at donor %d; on the backup: %02x", w->found[page].meta,
            w->found[page].checksum, w->rig.page[page].meta, (int)donor - 1, w->load.scratch[model_wrong_at]);
    for (uint32_t i = 0; i < DONORS; i++)
        fprintf(stderr, "; donor %u: %02x, checksum %08x", i, w->donor[i].slabs[model_wrong_at],
                checksum_of(w->donor[i].slabs + page * PAGE));
}

static bool opens(const struct world *w, uint64_t page, const struct isw_seal *seal, const uint8_t *remote, uint8_t *plain)
{
    if (w->sealer)
        return !isw_sealer_open(w->sealer, page, seal_serial(seal), seal->tag, remote, plain);
    memcpy(plain, remote, PAGE);
    return true;
}

/* The page's own seal; intent: not NULL, that of a version under way. */
static struct isw_seal *seal_of(const struct world *w, uint64_t page, const struct isw_intent *intent)
{
    uint64_t intents_offset, pages_offset, total;
    if (!w->sealer)
        return NULL;
    isw_seals_layout(SIZE, &intents_offset, &pages_offset, &total);
    struct isw_seal *seals = (void *)((uint8_t *)w->rig.config.seals + (intent ? intents_offset : pages_offset));
    return seals + (intent ? (uint64_t)(intent - w->rig.intents) * ISW_OP_PAGES_MAX + page - intent->first_page : page);
}

/* Is it a version under way?  Then its seal is the page's from here on, and plain what it reads as. */
static bool intended(const struct world *w, uint64_t page, const uint8_t *remote, uint8_t *plain)
{
    for (uint32_t i = 0; i < ISW_OPS; i++) {
        const struct isw_intent *intent = &w->rig.intents[i];
        if (!intent->pages || page < intent->first_page || page >= intent->first_page + intent->pages ||
            !opens(w, page, seal_of(w, page, intent), remote, plain) ||
            intent->checksum[page - intent->first_page] != checksum_of(plain))
            continue;
        if (w->sealer)
            *seal_of(w, page, NULL) = *seal_of(w, page, intent);
        return true;
    }
    return false;
}

static bool written_through(const struct world *w, uint64_t page)
{
    for (uint32_t i = 0; i < ISW_OPS; i++) {
        const struct isw_intent *intent = &w->rig.intents[i];
        if (intent->to_backup && page >= intent->first_page && page - intent->first_page < intent->pages)
            return true;
    }
    return false;
}

/* What a restarted device makes of a page that was being written (recovery.py: settle_page). */
static void settle(struct world *w, uint64_t page, const uint8_t *remote)
{
    uint8_t plain[PAGE];
    struct isw_page *entry = &w->rig.page[page];
    uint32_t flags = entry->meta & ISW_PAGE_PERSISTENT;
    if (!remote && (flags & ISW_PAGE_DISK)) /* given back, and killed before the flag was forgotten: drop_remote */
        flags &= ~(uint32_t)ISW_PAGE_REMOTE;
    w->writing++;
    if (remote && (flags & ISW_PAGE_REMOTE) && opens(w, page, seal_of(w, page, NULL), remote, plain) &&
        checksum_of(plain) == entry->checksum) {
        entry->meta = flags & ~(uint32_t)(written_through(w, page) ? ISW_PAGE_WRITING | ISW_PAGE_DISK : ISW_PAGE_WRITING);
        w->settled_old++;
    } else if (remote && intended(w, page, remote, plain)) {
        *entry = (struct isw_page){checksum_of(plain), ISW_PAGE_REMOTE};
        w->settled_new++;
    } else if (flags & ISW_PAGE_REMOTE) {
        FAIL("page %llu: meta %08x, but the remote copy is neither the old version nor the new one", (unsigned long long)page,
             entry->meta);
    } else {
        entry->meta = flags & (ISW_PAGE_PUNCH | ISW_PAGE_LOST) ? flags & ~(uint32_t)ISW_PAGE_WRITING : ISW_PAGE_DISK;
    }
}

static void check_page(struct world *w, uint64_t page)
{
    static const uint8_t zeroes[PAGE];
    struct isw_page *entry = &w->rig.page[page];
    uint32_t donor = w->shared->book[page * PAGE / SLAB];
    const uint8_t *remote = donor ? w->donor[donor - 1].slabs + page * PAGE : NULL, *backup = w->load.scratch + page * PAGE;
    uint32_t found = entry->meta;
    model_wrong_at = page * PAGE; /* should it be */
    if (entry->meta & ISW_PAGE_WRITING)
        settle(w, page, remote);
    entry->meta &= ISW_PAGE_PERSISTENT;
    if (!remote && (entry->meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == ISW_PAGE_REMOTE)
        FAIL("page %llu: meta %08x, and its slab has been given back", (unsigned long long)page, found);
    if (entry->meta & ISW_PAGE_LOST)
        FAIL("page %llu: meta %08x: no copy is left", (unsigned long long)page, found);
    if (!remote)
        entry->meta &= ~(uint32_t)ISW_PAGE_REMOTE;
    uint8_t plain[PAGE];
    if ((entry->meta & ISW_PAGE_REMOTE) &&
        (!opens(w, page, seal_of(w, page, NULL), remote, plain) || checksum_of(plain) != entry->checksum))
        FAIL("page %llu: meta %08x, but the remote copy is another version", (unsigned long long)page, found);
    if (!entry->meta && memcmp(backup, zeroes, PAGE))
        FAIL("page %llu: meta %08x: never written, but not zero in the image", (unsigned long long)page, found);
    memcpy(w->image + page * PAGE, entry->meta & ISW_PAGE_REMOTE ? plain : entry->meta & ISW_PAGE_DISK ? backup : zeroes,
           PAGE);
}

static void check_remains(struct world *w)
{
    for (uint32_t i = 0; i < DONORS; i++) /* what the dead one had sent still comes in */
        WAIT_UNTIL(isw_memory_export_connections(w->donor[i].memory, w->donor[i].number) == 0);
    rig_image(&w->rig, w->load.scratch);
    memcpy(w->found, w->rig.page, sizeof w->found);
    for (uint64_t page = 0; page < PAGES; page++)
        check_page(w, page);
    for (uint32_t i = 0; i < ISW_OPS; i++)
        w->rig.intents[i].pages = 0;
    model_check(&w->load.model, w->image, "after the kill");
    if (w->sealer) {
        const struct isw_seals_header *header = w->rig.config.seals;
        CHECK(header->serial >= w->serial); /* none is taken again */
        w->serial = header->serial;
    }
}

static void kill_in_the_middle(struct world *w, struct chance *chance)
{
    pid_t pid = start_device(w);
    uint64_t until = now_ns() + 1000000 * (5 + chance_below(chance, chance_in(chance, 4) ? 400 : 80));
    int status;
    while (now_ns() < until)
        load_step(&w->load);
    CHECK(waitpid(pid, &status, WNOHANG) == 0);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    load_forget(&w->load);
    load_disconnect(&w->load);
    check_remains(w);
}

/* A device that takes up what the last one left, and ends in order. */
static void end_in_order(struct world *w)
{
    rig_start(&w->rig);
    for (uint32_t i = 0; i < DONORS; i++)
        donor_attach(&w->donor[i], &w->rig, i);
    for (uint32_t slab = 0; slab < SLABS; slab++)
        if (w->shared->book[slab])
            CHECK_EQUAL(isw_device_slab_map(w->rig.device, slab, w->shared->book[slab] - 1, 1), 0);
    load_read_all(&w->load);
    for (uint32_t slab = 0; slab < SLABS; slab++) /* what was pending in the dead one comes to the backup first */
        if (w->shared->book[slab])
            CHECK_EQUAL(isw_device_slab_unmap(w->rig.device, slab), 0);
    for (uint32_t step = 0; step < 50; step++)
        load_step(&w->load);
    load_settle(&w->load);
    load_read_all(&w->load);
    load_disconnect(&w->load);
    rig_stop(&w->rig);
    rig_image(&w->rig, w->image);
    model_check(&w->load.model, w->image, "the image after a stop");
}

/* Has a kill met what it is about? */
static bool met(const struct world *w)
{
    return w->load.writes && w->writing && w->settled_new + w->settled_old && (!w->shared->guesses || w->shared->guessed);
}

enum { UNMAPS = 1, SEALED = 2, GUESSES = 4 };

static void run(uint32_t with, uint64_t rounds)
{
    const char *shared_fd = getenv("ISW_CRASH_SHARED");
    if (shared_fd) {
        int fd = atoi(shared_fd);
        be_the_device(mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    }
    static struct world world;
    struct world *w = &world;
    struct chance chance = chance_start(1);
    explained = w;
    check_explain = explain;
    w->shared = shared_memory(sizeof *w->shared, &w->shared_fd);
    rig_prepare(&w->rig, SIZE);
    rig_crowd(&w->rig);
    munmap(w->rig.config.state, w->rig.config.state_bytes);
    w->rig.config.state = shared_memory(w->rig.config.state_bytes, &w->state_fd);
    seed_state(w->rig.config.state);
    uint64_t intents_offset, pages_offset, total;
    isw_state_layout(SIZE, &intents_offset, &pages_offset, &total);
    w->rig.page = (struct isw_page *)(void *)((uint8_t *)w->rig.config.state + pages_offset);
    w->rig.intents = (struct isw_intent *)(void *)((uint8_t *)w->rig.config.state + intents_offset);
    w->shared->unmaps = with & UNMAPS;
    w->shared->guesses = with & GUESSES;
    if (with & SEALED) {
        rig_seal(&w->rig);
        w->sealer = isw_sealer_new(rig_seal_key, ((struct isw_seals_header *)w->rig.config.seals)->salt, NULL);
    }
    w->image = malloc(SIZE);
    for (uint32_t i = 0; i < DONORS; i++)
        w->memory_fd[i] = donor_open(&w->donor[i], SIZE, SLAB);
    load_open(&w->load, &w->rig, NULL, 2);
    w->load.along = with & GUESSES;
    /* On a machine with other work kills may come between the writes: some more then. */
    for (uint64_t round = 0; round < scaled(rounds) || (!met(w) && round < 10 * scaled(rounds)); round++) {
        w->shared->chance = chance_next(&chance);
        kill_in_the_middle(w, &chance);
    }
    end_in_order(w);
    CHECK_MET(met(w));
    isw_sealer_free(w->sealer);
    load_close(&w->load);
    for (uint32_t i = 0; i < DONORS; i++)
        donor_close(&w->donor[i]);
    munmap(w->shared, sizeof *w->shared);
    close(w->shared_fd);
    close(w->state_fd);
    free(w->image);
    rig_end(&w->rig);
}

TEST_ON_BOTH(killed_under_load)
{
    run(0, 12);
}

/* The same of a device that seals; what its donors have opens by the seals that outlived it. */
TEST_ON_BOTH(killed_while_it_seals)
{
    run(UNMAPS | SEALED, 10);
}

TEST_ON_BOTH(killed_while_slabs_are_given_up)
{
    run(UNMAPS, 16);
}

/* The same of a device that reads pages before they are asked for. */
TEST_ON_BOTH(killed_while_it_guesses)
{
    run(UNMAPS | GUESSES, 10);
}
