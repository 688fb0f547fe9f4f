#include "sim_disk.h"

#include "fake_backup.h"

#include <errno.h>

enum { SECTOR = 512, PAGE = ISW_PAGE_BYTES };

static bool changes(const struct backup_request *r)
{
    return r->kind == BACKUP_WRITE || r->kind == BACKUP_ZERO;
}

static uint64_t first_of(const struct backup_request *r)
{
    return r->offset / PAGE;
}

static uint64_t end_of(const struct backup_request *r)
{
    return (r->offset + r->bytes) / PAGE;
}

static void tell(struct sim_disk *disk, const char *what, const struct backup_request *r, int error)
{
    if (disk->told)
        disk->told(disk->owner, what, first_of(r), r->bytes / PAGE, error);
}

/* ---- contents ---- */

static uint8_t *payload_at(const struct backup_request *r, uint64_t at)
{
    for (uint32_t i = 0; i < r->vectors; i++) {
        if (at < r->iov[i].iov_len)
            return (uint8_t *)r->iov[i].iov_base + at;
        at -= r->iov[i].iov_len;
    }
    FAIL("a backup request without a place for its bytes");
}

/* One page of a change, or its first sectors only. */
static void change(struct sim_disk *disk, const struct backup_request *r, uint64_t page, uint32_t bytes)
{
    uint8_t *flags = &disk->flags[page], *image = disk->image + page * PAGE;
    bool doomed = *flags & SIM_PAGE_DOOMED;
    *flags &= (uint8_t)~SIM_PAGE_DOOMED;
    if (!bytes)
        return;
    if ((*flags & (SIM_PAGE_SYNCING | SIM_PAGE_DIRTY)) == SIM_PAGE_SYNCING) /* a sync answers for what it began with */
        memcpy(disk->durable + page * PAGE, image, PAGE);
    *flags |= SIM_PAGE_DIRTY;
    if (r->kind == BACKUP_ZERO) {
        memset(image, 0, bytes);
        if (bytes == PAGE)
            *flags &= (uint8_t)~SIM_PAGE_ALLOCATED;
    } else {
        memcpy(image, payload_at(r, page * PAGE - r->offset), bytes);
        *flags |= SIM_PAGE_ALLOCATED;
        if (disk->manners.bad_one_in && chance_in(&disk->chance, disk->manners.bad_one_in))
            *flags |= SIM_PAGE_BAD;
    }
    if (doomed) {
        *flags = (uint8_t)((*flags & ~(SIM_PAGE_DIRTY | SIM_PAGE_SYNCING)) | SIM_PAGE_FORGOTTEN);
        disk->doubted(disk->owner, page, true);
    }
}

static void change_some(struct sim_disk *disk, const struct backup_request *r, bool all)
{
    for (uint64_t page = first_of(r); page < end_of(r); page++)
        change(disk, r, page, all ? PAGE : (uint32_t)chance_below(&disk->chance, PAGE / SECTOR + 1) * SECTOR);
}

static void synced(struct sim_disk *disk, bool failed)
{
    bool drops = failed && disk->manners.sync_drop_one_in && chance_in(&disk->chance, disk->manners.sync_drop_one_in);
    for (uint64_t page = 0; page < disk->pages; page++) {
        uint8_t *flags = &disk->flags[page];
        if (failed && (*flags & SIM_PAGE_DIRTY)) { /* written since it began: which of it the error is about is not told */
            *flags |= SIM_PAGE_FORGOTTEN;
            disk->doubted(disk->owner, page, true);
        }
        if (failed && (*flags & SIM_PAGE_IN_FLIGHT))
            *flags |= chance_in(&disk->chance, 2) ? SIM_PAGE_SUSPECT | SIM_PAGE_DOOMED : SIM_PAGE_SUSPECT;
        if (!(*flags & SIM_PAGE_SYNCING))
            continue;
        bool rewritten = *flags & SIM_PAGE_DIRTY; /* since it began: then what this sync answers for is in durable already */
        *flags &= (uint8_t)~SIM_PAGE_SYNCING;
        if (!failed) {
            if (!rewritten)
                memcpy(disk->durable + page * PAGE, disk->image + page * PAGE, PAGE);
            if (*flags & SIM_PAGE_FORGOTTEN)
                disk->doubted(disk->owner, page, false);
            *flags &= (uint8_t)~SIM_PAGE_FORGOTTEN;
            continue;
        }
        if (rewritten)
            continue;
        /* As Linux does: told once, then forgotten. */
        if (drops && chance_in(&disk->chance, 2))
            memcpy(disk->image + page * PAGE, disk->durable + page * PAGE, PAGE);
        *flags |= SIM_PAGE_FORGOTTEN;
        disk->doubted(disk->owner, page, true);
    }
}

/* ---- requests ---- */

static int fault_of(struct sim_disk *disk, const struct backup_request *r)
{
    const struct sim_disk_manners *m = &disk->manners;
    if (disk->requests == m->fail_nth)
        return EIO;
    if (r->kind == BACKUP_SYNC || r->kind == BACKUP_SYNC_STATE)
        return m->sync_error_one_in && chance_in(&disk->chance, m->sync_error_one_in) ? EIO : 0;
    for (uint64_t page = first_of(r); r->kind != BACKUP_ZERO && page < end_of(r); page++)
        if (disk->flags[page] & SIM_PAGE_BAD)
            return EIO;
    if (r->kind == BACKUP_READ)
        return m->read_error_one_in && chance_in(&disk->chance, m->read_error_one_in) ? EIO : 0;
    return m->write_error_one_in && chance_in(&disk->chance, m->write_error_one_in) ? m->error : 0;
}

static void note_fault(struct sim_disk *disk, const struct backup_request *r)
{
    uint64_t order = disk->order(disk->order_owner);
    disk->faults++;
    for (uint64_t page = first_of(r); page < end_of(r); page++)
        disk->fault_order[page] = order;
    if (changes(r))
        disk->change_fault_order = order;
    if (r->kind == BACKUP_SYNC || r->kind == BACKUP_SYNC_STATE)
        disk->sync_fault_order = order;
}

static void wake_loop(struct sim_disk *disk)
{
    struct sim_descriptor *d = sim_descriptor(disk->system, disk->base.event_fd);
    d->count++;
    d->edge = true;
}

static void perform(struct sim_disk *disk, struct backup_request *r)
{
    static const char *const names[] = {"read", "write", "sync", "zero", "sync of the state"};
    disk->requests++;
    r->error = fault_of(disk, r);
    tell(disk, names[r->kind], r, r->error);
    if (r->error)
        note_fault(disk, r);
    if (r->kind == BACKUP_SYNC_STATE) {
        disk->sync_waits = false;
        disk->state(disk->owner, r->error ? SIM_STATE_FAILED : SIM_STATE_SYNCED);
    } else if (r->kind == BACKUP_SYNC) {
        disk->sync_waits = false;
        disk->syncs++;
        disk->last_sync = r->error ? SIM_SYNC_FAILED : SIM_SYNC_HEARD;
        synced(disk, r->error != 0);
    } else if (changes(r)) {
        change_some(disk, r, !r->error);
        for (uint64_t page = first_of(r); page < end_of(r); page++) {
            if (disk->flags[page] & SIM_PAGE_SUSPECT)
                disk->suspected(disk->owner, page);
            disk->flags[page] &= (uint8_t)~(SIM_PAGE_IN_FLIGHT | SIM_PAGE_SUSPECT | SIM_PAGE_DOOMED);
        }
    } else if (!r->error) {
        for (uint64_t page = first_of(r); page < end_of(r); page++)
            memcpy(payload_at(r, page * PAGE - r->offset), disk->image + page * PAGE, PAGE);
    }
    r->next = NULL;
    *disk->done_end = r;
    disk->done_end = &r->next;
    if (!disk->silent)
        wake_loop(disk);
}

static void finished(void *owner, uint64_t number)
{
    struct sim_disk *disk = owner;
    uint32_t slot = (uint32_t)(number % SIM_DISK_QUEUE);
    if (number / SIM_DISK_QUEUE != disk->life)
        return;
    struct backup_request *r = disk->waiting[slot];
    disk->waiting[slot] = NULL;
    disk->count--;
    perform(disk, r);
}

static void check_request(struct sim_disk *disk, struct backup_request *r)
{
    if (r->kind == BACKUP_SYNC_STATE) {
        CHECK(!disk->sync_waits);
        disk->sync_waits = true;
        disk->state(disk->owner, SIM_STATE_BEGUN);
        return;
    }
    if (r->kind == BACKUP_SYNC) {
        CHECK(!disk->sync_waits);
        disk->sync_waits = true;
        for (uint64_t page = 0; page < disk->pages; page++)
            if (disk->flags[page] & SIM_PAGE_DIRTY)
                disk->flags[page] = (uint8_t)((disk->flags[page] & ~SIM_PAGE_DIRTY) | SIM_PAGE_SYNCING);
        return;
    }
    CHECK(r->bytes && r->offset % PAGE == 0 && r->bytes % PAGE == 0 && r->offset + r->bytes <= disk->size_bytes);
    for (uint64_t page = first_of(r); changes(r) && page < end_of(r); page++) {
        if (disk->flags[page] & SIM_PAGE_IN_FLIGHT)
            FAIL("page %llu: two backup writes in flight", (unsigned long long)page);
        disk->flags[page] |= SIM_PAGE_IN_FLIGHT;
    }
}

/* It goes on to something else. */
static void heard(struct sim_disk *disk)
{
    if (disk->last_sync == SIM_SYNC_BEING_HEARD)
        disk->last_sync = SIM_SYNC_HEARD;
}

static void submit(struct backup *backup, struct backup_request *r)
{
    struct sim_disk *disk = (struct sim_disk *)backup;
    uint32_t slot = 0;
    sim_point(disk->system);
    heard(disk);
    CHECK(disk->count < disk->capacity);
    while (disk->waiting[slot])
        slot++;
    check_request(disk, r);
    uint64_t due_ns = disk->system->now_ns + 10000 +
                      chance_below(&disk->chance, r->kind == BACKUP_SYNC || r->kind == BACKUP_SYNC_STATE ? disk->manners.sync_ns_max : disk->manners.request_ns_max);
    if (disk->manners.stall_one_in && chance_in(&disk->chance, disk->manners.stall_one_in))
        due_ns += disk->manners.stall_ns;
    disk->waiting[slot] = r;
    disk->count++;
    sim_at(disk->system, due_ns, finished, disk, (uint64_t)disk->life * SIM_DISK_QUEUE + slot);
}

static void kick(struct backup *backup)
{
    (void)backup;
}

static struct backup_request *reap(struct backup *backup)
{
    struct sim_disk *disk = (struct sim_disk *)backup;
    struct backup_request *list = disk->done;
    heard(disk);
    if (disk->last_sync == SIM_SYNC_FAILED)
        disk->last_sync = SIM_SYNC_BEING_HEARD;
    sim_descriptor(disk->system, backup->event_fd)->count = 0;
    disk->done = NULL;
    disk->done_end = &disk->done;
    return list;
}

static void forget_queue(struct sim_disk *disk)
{
    memset(disk->waiting, 0, sizeof disk->waiting);
    disk->count = 0;
    disk->life++;
    disk->done = NULL;
    disk->done_end = &disk->done;
    disk->sync_waits = false;
    for (uint64_t page = 0; page < disk->pages; page++) {
        if (disk->flags[page] & SIM_PAGE_SYNCING)
            disk->flags[page] |= SIM_PAGE_DIRTY;
        disk->flags[page] &= (uint8_t)~(SIM_PAGE_IN_FLIGHT | SIM_PAGE_SYNCING | SIM_PAGE_SUSPECT | SIM_PAGE_DOOMED);
    }
}

static void destroy(struct backup *backup)
{
    struct sim_disk *disk = (struct sim_disk *)backup;
    while (disk->count) /* as the real ones do: memory of the device's is in use */
        CHECK(sim_step(disk->system, UINT64_MAX));
    sim_descriptor_close(disk->system, sim_descriptor(disk->system, backup->event_fd));
    forget_queue(disk);
}

static bool attend(struct backup *backup, bool told)
{
    struct sim_disk *disk = (struct sim_disk *)backup;
    disk->silent = !told;
    return disk->done;
}

static const struct backup_methods methods = {submit, kick, reap, destroy, attend, backup_image_wants, NULL, NULL, NULL, NULL};

/* ---- its life ---- */

static struct backup *create(struct backup *backup, uint32_t capacity)
{
    struct sim_disk *disk = (struct sim_disk *)backup;
    int fd;
    sim_descriptor_new(disk->system, &fd)->kind = SIM_COUNTER;
    disk->syncs = 0;
    disk->silent = false;
    disk->last_sync = SIM_SYNC_HEARD;
    disk->base = (struct backup){.methods = &methods, .engine = ISW_BACKUP_URING, .event_fd = fd, .fd = -1, .sparse = true};
    disk->capacity = capacity < SIM_DISK_QUEUE ? capacity : SIM_DISK_QUEUE;
    return &disk->base;
}

void sim_disk_install(struct sim_disk *disk)
{
    fake_backup_install((struct fake_backup){create, &disk->base});
}

void sim_disk_open(struct sim_disk *disk, struct sim_system *system, uint64_t size_bytes, struct chance chance)
{
    *disk = (struct sim_disk){.system = system, .chance = chance, .size_bytes = size_bytes, .pages = size_bytes / PAGE};
    disk->image = calloc(1, size_bytes);
    disk->durable = calloc(1, size_bytes);
    disk->flags = calloc(1, disk->pages);
    disk->fault_order = calloc(disk->pages, sizeof *disk->fault_order);
    CHECK(disk->image && disk->durable && disk->flags && disk->fault_order);
    disk->done_end = &disk->done;
    disk->manners = (struct sim_disk_manners){.request_ns_max = 200000, .sync_ns_max = 2000000, .error = EIO};
}

void sim_disk_close(struct sim_disk *disk)
{
    free(disk->image);
    free(disk->durable);
    free(disk->flags);
    free(disk->fault_order);
}

void sim_disk_killed(struct sim_disk *disk)
{
    for (uint32_t i = 0; i < SIM_DISK_QUEUE; i++) {
        const struct backup_request *r = disk->waiting[i];
        uint64_t fate = chance_below(&disk->chance, 3);
        if (r && changes(r) && fate)
            change_some(disk, r, fate == 1);
    }
    for (uint64_t page = 0; disk->last_sync != SIM_SYNC_HEARD && page < disk->pages; page++)
        if (disk->flags[page] & SIM_PAGE_FORGOTTEN)
            disk->unheard(disk->owner, page);
    forget_queue(disk);
}

void sim_disk_power_cut(struct sim_disk *disk)
{
    for (uint64_t page = 0; page < disk->pages; page++) {
        uint8_t *image = disk->image + page * PAGE, *durable = disk->durable + page * PAGE;
        if (!(disk->flags[page] & (SIM_PAGE_DIRTY | SIM_PAGE_SYNCING | SIM_PAGE_FORGOTTEN)))
            continue;
        uint64_t fate = chance_below(&disk->chance, 4); /* all, nothing, or some of its sectors */
        for (uint32_t at = 0; fate && at < PAGE; at += SECTOR)
            if (fate == 1 || chance_in(&disk->chance, 2))
                memcpy(image + at, durable + at, SECTOR);
        memcpy(durable, image, PAGE);
        disk->flags[page] &= (uint8_t)~(SIM_PAGE_DIRTY | SIM_PAGE_SYNCING | SIM_PAGE_FORGOTTEN);
        disk->flags[page] |= SIM_PAGE_ALLOCATED;
    }
}
